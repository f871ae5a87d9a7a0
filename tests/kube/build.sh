#!/usr/bin/env bash
# Makes the servers of a Kubernetes cluster for tests out of Debian 12's source package: API server, controller manager
# and scheduler, and etcd beside them. They land in ${XDG_CACHE_HOME:-~/.cache}/farcall-k8s/bin and are made once: from
# nothing it takes three minutes on two idle cores, some 4 GB of disk meanwhile, and 270 MB afterwards.
#
#   tests/kube/build.sh          GO_JOBS=1 for a machine that has something else to do
#
# Nothing is installed: packages are unpacked beside the sources, so that nothing of the system changes or starts.
set -euo pipefail

cache="${XDG_CACHE_HOME:-$HOME/.cache}/farcall-k8s"
bin="$cache/bin"
work="$cache/work"
servers=(kube-apiserver kube-controller-manager kube-scheduler)
# Of Debian's archive: the compiler, and the one library that the sources bring in too old a version.
packages=(golang-1.19-go golang-1.19-src golang-github-modern-go-reflect2-dev etcd-server)

mkdir -p "$cache"
exec 9> "$cache/lock"
flock 9
[ -e "$bin/complete" ] && exit 0
for program in apt-get dpkg patch; do
    command -v "$program" > /dev/null || { echo "$program is not there: this needs Debian 12" >&2; exit 1; }
done

rm -rf "$bin" "$work/debs" "$work/root"
mkdir -p "$bin" "$work/apt/lists" "$work/debs" "$work/root" "$work/source"
cd "$work"

# The machine's own archive, with source packages added, in a list of our own.
if [ -e /etc/apt/sources.list.d/debian.sources ]; then
    sed 's/^Types: deb$/Types: deb deb-src/' /etc/apt/sources.list.d/debian.sources > apt/farcall.sources
else
    sed -n 's/^deb \(.*debian.*\)/&\ndeb-src \1/p' /etc/apt/sources.list > apt/farcall.list
fi
apt=(-qq -o "Dir::Etc::SourceParts=$work/apt" -o Dir::Etc::SourceList=/dev/null -o "Dir::State::Lists=$work/apt/lists"
    -o APT::Sandbox::User=root)
apt-get "${apt[@]}" update
(cd debs && apt-get "${apt[@]}" download "${packages[@]}")
for package in debs/*.deb; do
    dpkg -x "$package" root
done

tree="$work/gopath/src/k8s.io/kubernetes"
if [ ! -e source/unpacked ]; then
    (cd source && apt-get "${apt[@]}" --download-only source kubernetes)
    rm -rf "$tree"
    mkdir -p "$tree"
    tar -xzf source/kubernetes_*.orig.tar.gz --strip-components=1 -C "$tree"
    tar -xJf source/kubernetes_*.debian.tar.xz -C "$tree"
    (cd "$tree" && while read -r name; do patch -p1 -s < "debian/patches/$name"; done < debian/patches/series)
    # What is vendored crashes at the first answer in JSON when a Go newer than 1.17 has compiled it.
    rm -f "$tree"/vendor/github.com/modern-go/reflect2/*.{go,s}
    cp root/usr/share/gocode/src/github.com/modern-go/reflect2/*.{go,s} "$tree/vendor/github.com/modern-go/reflect2/"
    touch source/unpacked
fi

# As a tree below GOPATH: Go 1.19 takes this one's go.mod, which is of 1.15's time, for out of date.
export GOROOT="$work/root/usr/lib/go-1.19" GOPATH="$work/gopath" GOCACHE="$work/gocache"
export GO111MODULE=off GOPROXY=off GOFLAGS="" CGO_ENABLED=0 PATH="$work/root/usr/lib/go-1.19/bin:$PATH"
jobs="${GO_JOBS:-$(nproc)}"
cd "$tree"

# The description of the API is generated code that the archive does not hold.
generated=pkg/generated/openapi
if [ ! -s "$generated/zz_generated.openapi.go" ]; then
    go build -p "$jobs" -o "$work/openapi-gen" ./vendor/k8s.io/kube-openapi/cmd/openapi-gen
    described=$(grep -rl --include='*.go' '^// +k8s:openapi-gen=' pkg cmd plugin vendor/k8s.io/*/ |
        grep -v -e /zz_generated -e vendor/k8s.io/code-generator/ -e vendor/k8s.io/sample- |
        xargs -n 1 dirname | sort -u | sed 's#^#k8s.io/kubernetes/#' | paste -sd,)
    "$work/openapi-gen" --logtostderr -i "$described" -p "k8s.io/kubernetes/$generated" -O zz_generated.openapi \
        -h vendor/k8s.io/code-generator/hack/boilerplate.go.txt -r "$work/openapi-remarks"
fi

version=$(sed -n '1s/.*really\([0-9.]*\).*/\1/p' debian/changelog)
said=(gitVersion="v$version" gitMajor="${version%%.*}" gitMinor="$(cut -d. -f2 <<< "$version")" gitTreeState=clean)
flags="-s -w"
for package in component-base/version client-go/pkg/version; do
    for each in "${said[@]}"; do
        flags+=" -X k8s.io/kubernetes/vendor/k8s.io/$package.$each"
    done
done
go build -p "$jobs" -trimpath -ldflags "$flags" -o "$bin/" "${servers[@]/#/./cmd/}"
cp "$work/root/usr/bin/etcd" "$bin/"
touch "$bin/complete"
chmod -R u+w "$work"
rm -rf "$work"
