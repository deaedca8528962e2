"""Renders a run as Kubernetes manifests: a Job, a JobSet or an MPIJob, and all that it needs. Talks to no cluster."""
