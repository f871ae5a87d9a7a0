"""The endpoint of Farcall: an agent that runs tasks on the machine, or the cluster, that it was started on."""
