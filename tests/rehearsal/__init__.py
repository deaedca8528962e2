"""A cluster on one machine, which takes the manifests that `drumline launch kubernetes` prints and starts their pods.

    privacy      mounts and network namespaces that go with this process, however it ends
    network      a bridge, an address for each pod, names, Services, and what a NetworkPolicy lets through
    volumes      ConfigMaps, Secrets, claims and emptyDirs as folders of this machine
    containers   one container: bubblewrap makes its file systems, user and processes
    pods         what the kubelet does: init containers, probes, restarts, the grace period
    controllers  Job, Deployment, JobSet and MPIJob
    cluster      the objects, and the loop that keeps all of this going

What a manifest says and the rehearsal does not know is an error here, never passed over. Limits of memory are not enforced,
and one machine has one clock and one disk.
"""
