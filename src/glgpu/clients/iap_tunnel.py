"""The way to a VM through Identity-Aware Proxy: gcloud as OpenSSH's ProxyCommand."""

from __future__ import annotations

import shlex

from glgpu.clients.google_login import gcloud_environment
from glgpu.interfaces import Endpoint, Proxy
from glgpu.job import Job
from glgpu.processes import need_tool


def iap_proxy(job: Job, project: str, endpoint: Endpoint) -> Proxy:
    """The tunnel to a VM's SSH port (https://cloud.google.com/iap/docs/using-tcp-forwarding).

    ``--listen-on-stdin`` is what `gcloud compute ssh` itself uses.

    Raises:
        Failure: TOOL_MISSING, where gcloud is not installed.
    """
    argv = [need_tool("gcloud", "to reach the VM through Identity-Aware Proxy; the job image `job-iap` has it")]
    argv += ["compute", "start-iap-tunnel", endpoint.name, str(endpoint.port), "--listen-on-stdin"]
    argv += [f"--project={project}", f"--zone={endpoint.zone}", "--verbosity=warning"]
    if job.iap_endpoint:
        argv += [f"--iap-tunnel-url-override={job.iap_endpoint}"]
    # ssh expands percent signs before it gives the line to a shell.
    return Proxy(shlex.join(argv).replace("%", "%%"), gcloud_environment(job))
