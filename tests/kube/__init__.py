"""A real Kubernetes for tests: Debian's API server, scheduler and controllers, and nodes that run pods as processes.

Not called `kubernetes`, which is the client library's name.
"""
