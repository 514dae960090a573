"""What the other side's words mean: one ordered table, the first rule that matches is the answer.

Terraform prints the messages of Google's errors, seldom their codes, so most rules match either. The order is that of
causes: what explains the other words in a text comes before them. A full disk stands before the pull that it stopped,
a stockout before Terraform's frame around it, an expired token before the 403 that follows from it, and words that
every program uses (not found, timed out, 503) come last. Case counts where Google's codes would be ordinary words.

The wordings are those of public issue trackers (tests/fixtures/errors names each place), of Google's API, of gcloud, of
the google provider, of Docker, OpenSSH, git, GitLab and NVIDIA.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property

from glgpu.errors import ErrorClass
from glgpu.links import (
    BILLING,
    CUDA,
    FEDERATION,
    GPU_ZONES,
    IAP,
    ORG_POLICIES,
    QUOTAS,
    SSH_TROUBLE,
    TOKENS,
)

ACCESS_PAGE = "docs/how-to/google-cloud-access.md"
ERRORS_PAGE = "docs/reference/errors.md"
DOCTOR = "`glgpu doctor` looks for what can be wrong before a VM is bought"


@dataclass(frozen=True)
class Rule:
    """One meaning.

    Attributes:
        klass: The class.
        looks: What the text looks like, as a regular expression.
        cause: One line; empty: the line that matched.
        remedy: One line.
    """

    klass: ErrorClass
    looks: str
    cause: str
    remedy: str

    @cached_property
    def pattern(self) -> re.Pattern[str]:
        """The same, to search with; the groups ``a`` and ``b`` may be used in cause and remedy.

        Made when it is needed: all of them together would take a part of every command's start.
        """
        return re.compile(self.looks, re.IGNORECASE | re.MULTILINE)


def _rule(klass: ErrorClass, *patterns: str, cause: str = "", remedy: str) -> Rule:
    """A rule whose patterns are alternatives.

    What people paste has been wrapped by gcloud, or by their terminal: a blank stands for any white space, and for
    none as well where a question mark follows. A dot stays on its line; an ellipsis stands for a few lines of anything.
    """
    spaced = "|".join(patterns).replace(" ?", r"\s*").replace(" ", r"\s+")
    spaced = spaced.replace("\N{HORIZONTAL ELLIPSIS}", r"[\s\S]{0,400}?")
    return Rule(klass, spaced, cause, remedy)


def _status(codes: str) -> str:
    """An HTTP status where a text speaks of one; any three digits may be a line number."""
    return (
        r"(?:(?<!Value)(?<!Index)(?<!Key)(?<!Type)(?<!Runtime)(?<!Assertion)Error|HTTP(?:/[\d.]+)?|status(?: code)?"
        r"|(?<!exit\x20)code|returned error|response code)['\"]?[:=]? ?"
        rf"['\"]?(?:{codes})\b|^(?:[\w.]+: )?(?:{codes}) "
        rf"(?:GET|HEAD|POST|PUT|PATCH|DELETE|[A-Z][a-z]+ Error)\b|[<(]HttpError (?:{codes})\b"
    )


_STATE = (
    r"(?:Error (?:loading|saving|refreshing|locking|reading|writing|migrating|inspecting|acquiring|releasing"
    r"|downloading)(?: the)?(?: \S+)? state"
    r"|Failed to (?:get existing workspaces|open state file|(?:load|save|persist|upload|read|write|lock|unlock|get|open"
    r"|retrieve)(?: the)?(?: \S+)? state)|querying Cloud Storage failed|HTTP remote state|tfstate\b|\.tflock\b)"
)
"""A text that speaks of Terraform's state."""

_REPOSITORY = r"(?:Could not read from remote repository|fatal: unable to access|fatal: clone of|RPC failed)"
_NO_WAY = (
    r"(?:Could ?n.t resolve host|Could not resolve|Name or service not known|name resolution|no such host|not known"
    r"|Connection refused|Connection timed out|Operation timed out|timed out after|Connection reset|No route to host"
    r"|Network is unreachable|Failed to connect to|Connection closed by|kex_exchange_identification|banner exchange"
    r"|TLS connect error|gnutls_handshake|GnuTLS recv|SSL certificate problem|SSL_ERROR|SSL_connect|SSL_read"
    r"|certificate verif|Recv failure|early EOF|HTTP/2 stream|transfer closed|unexpected disconnect|HTTP code 407)"
)

_NO_TRANSPORT = (
    r"(?:no route to host|i/o timeout|TLS handshake|connection (?:refused|reset|timed out)|network is unreachable"
    r"|no such host|name resolution|server misbehaving|Client\.Timeout|context deadline exceeded|timed out|x509: "
    r"|proxyconnect|unexpected EOF|: EOF\b|dial tcp\b)"
)
"""Why nothing answered."""
_REGISTRY_SAID_NO = r"(?:denied|unauthorized|manifest unknown|not found|\b40[134]\b)"
_CANNOT = r"(?:could not|cannot|can't|unable to|fail(?:ed|s|ure)? to|errors?:?) "
_NOT_IF = r"^(?!.*\b(?:if|when|whenever|unless|once|should|until|can|may|might)\b).*"
"""A line that tells what happened, not what might."""
_OPERATION = r"(?:operation|change|update|request|modification)"
_TAKEN = (
    r"(?:alreadyExists|already exists?\b|(?-i:ALREADY_EXISTS)|resourceInUseByAnotherResource|(?-i:RESOURCE_IN_USE\w*)"
    r"|is already (?:being )?(?:used by|assigned to)|is already in use|already been (?:taken|used)"
    r"|address already in use|port is already allocated|name is not available"
    r"|already (?:attached|mounted|running|member)|is being used by|in use by (?:container|another))"
)
_SSH_HOST_KEY = (
    r"(?:REMOTE HOST IDENTIFICATION HAS CHANGED|Host key verification failed|No \S+ host key is known"
    r"|authenticity of host|host key for \S+ has changed|Server \S+ not found in known_hosts|host key mismatch"
    r"|knownhosts: key (?:mismatch|is unknown)|Host key is not trusted|HostKeyNotVerifiable)"
)

GPU_AND_MEMORY = (
    _rule(
        ErrorClass.OOM,
        r"OOM when allocating tensor[^\n]{0,300}\bdevice:CPU"
        r"|OOM when allocating tensor…_device=\"/job:localhost/replica:0/task:0/(?:device:)?cpu:0",
        cause="the VM's main memory is too small for what the training wants at once",
        remedy="train with smaller batches, or set machine.type to one with more memory: `glgpu gpus` lists them",
    ),
    _rule(
        ErrorClass.OOM,
        r"CUDA out of memory|(?<!java\.lang\.)OutOfMemoryError|CUDA_ERROR_OUT_OF_MEMORY"
        r"|cuda.{0,200}\bout of memory\b",
        r"Tried to allocate [^\n]{0,40}\bGPU\b",
        r"cudaErrorMemoryAllocation|cudaMalloc failed: out of memory",
        r"CU(?:BLAS|DNN|SOLVER|FFT)_STATUS_ALLOC_FAILED|CUFFT_ALLOC_FAILED|OOM when allocating tensor",
        r"RESOURCE_EXHAUSTED: (?:Out of memory|Failed to allocate)|Resource exhausted: (?:OOM|Out of memory)",
        r"ResourceExhaustedError(?![^\n]{0,400}No space left)",
        r"Failed to allocate (?:request for )?[\d.]+ ?[KMG]i?B.{0,60}device|ran out of memory trying to allocate",
        r"HIP out of memory|not enough (?:GPU|VRAM) memory|No available memory for the cache blocks",
        cause="the GPU's memory is too small for what the training wants at once",
        remedy="train with smaller batches, or set machine.gpu to one with more memory: `glgpu gpus` lists them",
    ),
    _rule(
        ErrorClass.OOM,
        r"DataLoader worker \(pid[^)]*\) is killed by signal: Bus error|DataLoader…out of shared memory",
        r"insufficient shared memory \(shm\)|increase(?: the)? shared memory limit",
        r"unable to (?:write to|mmap|resize|open) (?:file|shared memory object|\d+ bytes from file) </?torch_",
        r"Bus error.{0,80}core dumped…shm|/dev/shm.{0,120}No space left on device",
        cause="the container's shared memory (/dev/shm) is too small for its data loader",
        remedy="leave `train.shm_gb` out, which gives the container the VM's own, or use fewer loader workers "
        "(docs/reference/settings.md)",
    ),
    _rule(
        ErrorClass.OOM,
        r"OOM-?Killed\W{1,4}(?:true\b|$)|Reason: +OOMKilled|\bOOMKilled\b(?!\W{1,4}false)|\boom-kill\b|oom_reaper",
        r"Out of memory: Kill(?:ed)? process|fatal error: out of memory|Memory cgroup out of memory",
        r"invoked oom-killer|\bOOM killer\b",
        r"exit(?:ed)?(?: with)?(?: non-zero)?(?: exit)?(?: code| status| value)?[ :=(]{1,3}-?137\b",
        r"exit status 137\b|status code 137\b|ExitCode\W{1,4}137\b|^(?:\S+: )?line \d+: +\d+ Killed\b|^Killed$",
        r"DefaultCPUAllocator: |posix_memalign\(.{0,60}\b12\b"
        r"|(?<!except\x20)(?<!\w)_?(?:Array)?MemoryError\b(?! as\b|:$|[,)])",
        r"(?:not enough|insufficient) (?:host |system |CPU )?memory|java\.lang\.OutOfMemoryError|out of host memory",
        r"(?:could not|cannot|can't|failed to|unable to) allocate (?:memory|[\d.]+ ?(?:[KMGT]i?B|bytes)\b)",
        r"oom_kill|\btask \d+: Out Of Memory|oom-kill(?:er)? event",
        r"Unable to allocate [\d.]+ ?[KMGT]iB for an array|Cannot allocate memory|std::bad_alloc",
        r"killed by signal: Killed|died with <Signals\.SIGKILL|Signal 9 \(SIGKILL\)|SIGKILL.{0,40}out of memory",
        r"\bexitcode\W{1,3}-9\b|terminated.{0,60}due to (?:low memory|memory pressure|out.of.memory)",
        cause="the process was killed, as happens where a machine runs out of memory",
        remedy="set machine.type to one with more memory, or train with smaller batches and fewer loader workers: "
        "`glgpu gpus` lists them",
    ),
    _rule(
        ErrorClass.DRIVER,
        r"no kernel image is available|cudaErrorNoKernelImageForDevice|CUDA_ERROR_NO_BINARY_FOR_GPU",
        r"device kernel image is invalid|CUDA error: invalid device function|PTX was compiled with an unsupported",
        r"cudaErrorUnsupportedPtxVersion|CUDA_ERROR_(?:UNSUPPORTED_PTX_VERSION|INVALID_PTX)",
        r"Unsupported gpu architecture|is not compatible with the current PyTorch installation",
        r"no longer supports? this GPU because it is too old|CUDA version \([\d.]+\) mismatches the version",
        r"__nvJitLink\w+|ptxas.{0,80}too old|older than the ptxas version",
        r"minimum (?:CUDA|cuda) capability supported by this library",
        cause="the container's CUDA libraries were not built for this GPU, or are newer than the VM's driver",
        remedy=f"set train.image to one whose CUDA fits GPU and driver ({CUDA.url}); `glgpu gpus` names the driver",
    ),
    _rule(
        ErrorClass.DRIVER,
        r"Loaded (?:runtime )?cuDNN library: ?[\d.]+|cuDNN compiled \(\d+\) and runtime",
        r"\b(?:cuDNN|cuBLAS|NCCL|CUDA|CUDART)(?: library| runtime| driver)? version (?:mismatch|incompatib)",
        r"cuDNN\b.{0,120}\bbut found runtime version|(?:CUDNN|CUBLAS|CUSPARSE)_STATUS_(?:SUBLIBRARY_)?VERSION_MISMATCH",
        r"undefined symbol: _*(?:nccl[A-Z]|cu(?:dnn|blas|sparse|solver|fft|rand|da)[A-Z]|cu(?:blas|sparse)Lt)\w*",
        r"(?:_cuda|_cuda_\w+|flash_attn\w*)(?:\.[\w-]+)*\.so: undefined symbol|(?:failed|unable"
        r"|could not) to load (?:the )?cuDNN",
        r"lib(?:cudnn|cublas|nccl|cusparse|cusolver|nvrtc)\S*: undefined symbol|CUDNN_STATUS_ARCH_MISMATCH",
        cause="CUDA libraries in the container (cuDNN, cuBLAS, NCCL) do not fit each other, or the framework",
        remedy="set train.image to one whose framework and CUDA libraries belong together, and install no other copy "
        f"of them over it ({CUDA.url})",
    ),
    _rule(
        ErrorClass.DRIVER,
        r"could not select device driver|unknown(?: or invalid)? runtime(?: name)?(?: specified)?:? \"?nvidia",
        r"nvidia-container-cli: (?!initialization error|requirement|mount error|detection error)",
        r"nvidia-container-runtime|NVIDIA Container Runtime|(?:unresolvable|no such|unknown"
        r"|inject\w*) CDI (?:host )?device",
        r"(?:unresolvable|inject\w*|no such|unknown) [^\n]{0,40}nvidia\.com/|CDI (?:host )?devices?\b.{0,80}(?:fail"
        r"|no such|not found)",
        r"libnvidia-container|nvidia-ctk|nvidia-container-toolkit",
        cause="Docker on the VM cannot hand the GPU to a container: the NVIDIA container toolkit is missing or broken",
        remedy="set machine.image to a boot image with NVIDIA's container toolkit, such as the default; on the VM, "
        "`docker info` lists the runtimes",
    ),
    _rule(
        ErrorClass.DRIVER,
        r"Torch not compiled with CUDA|(?:error|fatal)\b[^\n]{0,120}(?:not compiled|not built|built without"
        r"|compiled without) (?:with )?(?:CUDA"
        r"|GPU)\b",
        r"jaxlib.{0,60}(?:no CUDA|without CUDA|not CUDA)|CUDA-enabled jaxlib is not installed",
        cause="the container image's framework was built without CUDA",
        remedy=f"set train.image to an image whose framework is built for CUDA ({CUDA.url}); `glgpu gpus` names the "
        "driver",
    ),
    _rule(
        ErrorClass.DRIVER,
        r"fallen off the bus|(?:RmInitAdapter|rm_init_adapter) failed|Unable to determine the device handle"
        r"|GPU is lost",
        r"GPU (?:requires|needs) (?:a )?reset|uncorrectable ECC|\bXid \(PCI[^)]*\): (?:48|61|62|63|64|74|79|92|94|95"
        r"|119|120)\b",
        r"NVIDIA probe routine failed|row remap(?:ping|per) fail",
        r"devices? (?:is|are|is/are) busy or unavailable|cudaErrorDevices?Unavailable|CUDA_ERROR_DEVICE_UNAVAILABLE"
        r"|cuda runtime error \(46\)",
        cause="the VM's GPU does not answer, is broken, or is held by another program",
        remedy="end what else uses the GPU; where nothing does, take a new VM, best in another zone: name others "
        "first in machine.zones (`glgpu gpus` lists them), then retry the job; where every VM says so, set "
        "machine.image to the default",
    ),
    _rule(
        ErrorClass.DRIVER,
        r"CU(?:DNN|BLAS|SOLVER|SPARSE)_STATUS_NOT_INITIALIZED|(?<!\w)DNN library (?:initialization failed"
        r"|is not found)",
        r"(?:could not|failed to) create (?:cudnn|cublas|cusolver) ?handle",
        cause="cuDNN or another CUDA library could not start",
        remedy="often the GPU's memory is full already: try smaller batches; else the libraries in train.image and "
        f"the VM's driver do not fit ({CUDA.url}): `glgpu gpus` names the driver",
    ),
    _rule(
        ErrorClass.DRIVER,
        r"Bad return status for module build…nvidia|nvidia…Bad return status for module build",
        r"DKMS\b.{0,40}nvidia.{0,100}fail|nvidia\S*(?: package)? .{0,60}(?:failed to build|build failed)",
        r"kernel module (?:could not be|was not|cannot be|has not been) (?:built|created|inserted|compiled|installed)",
        r"headers? for (?:\w+ ){0,3}kernel.{0,60}not (?:found|installed)…nvidia"
        r"|Unable to locate package linux-headers|kernel headers? (?:for \S+ )*(?:module )?\W?nvidia",
        r"nvidia…(?:kernel[- ]|linux-)headers?\b.{0,80}(?:not found|missing|unable|could not|not installed)",
        r"(?:kernel[- ]|linux-)headers?\b.{0,80}(?:not found|missing|unable|could not|not installed)…nvidia",
        r"nouveau\b.{0,80}(?:in use|is loaded|being used|incompatible|must be disabled|conflict)",
        r"(?:install_gpu_driver|cos-gpu-installer|gpu[- ]driver[- ]installer|NVIDIA-Linux-x86_64).{0,200}(?:fail"
        r"|error|non-zero)",
        r"No CUDA runtime is found|Error installing (?:the )?(?:GPU|NVIDIA) driver"
        r"|installing (?:GPU )?drivers: .{0,80}exit",
        remedy="set machine.image to a boot image that brings the NVIDIA driver with it, such as the default: `glgpu "
        f"gpus` names the driver of each GPU, {CUDA.url} what a CUDA version needs",
    ),
    _rule(
        ErrorClass.DRIVER,
        r"NVML: Unknown Error",
        cause="the program has lost the GPU, or never had it",
        remedy="start the container again, with the GPU: a running one loses it when systemd reloads the VM's units; "
        "where a new one says the same, the driver and the image do not fit: `glgpu gpus` names the driver of each GPU",
    ),
    _rule(
        ErrorClass.DRIVER,
        r"NVIDIA-SMI (?:has failed|couldn't)|CUDA-capable device\(s\) is/are|CUDA call failed lazily",
        r"NVIDIA Driver was not detected|NVML Shared Library|nvidia-installer|NVIDIA kernel module",
        r"no supported devices found for platform CUDA|CUDA failed to initialize",
        r"libnvidia-ml\.so|GPU functionality will not be available|CUDA backend failed|GPU vendor from CDI",
        r"no known GPU vendor|kernel source tree for the currently running",
        r"(?:load|insert|build) the '?\S*nvidia\S*'? kernel module|nvidia-container-cli|Failed to initialize NVML",
        r"NVML: (?:Driver|Unknown)|nvml error|Driver/library version mismatch|NVMLError_?\w*",
        r"nvidia-smi\W{1,4}(?:command )?not found|NVRM: |\bXid \(PCI|\"nvidia-smi\": (?:executable|stat)",
        r"nvidia-smi: (?:No such|cannot)|forward compatibility was attempted",
        r"cudaErrorCompatNotSupportedOnDevice|CUDA driver version is insufficient|cudaErrorInsufficientDriver",
        r"NVIDIA driver on your system is too old|NVIDIA driver is too old|Found no NVIDIA driver",
        r"could not find (?:any )?(?:cuda|nvidia) drivers?",
        r"(?:possibly )?insufficient driver version|(?:requires|needs) a newer (?:NVIDIA|CUDA|GPU)(?: \w+)? driver",
        r"NVIDIA driver is not compatible|not supported on this driver|unsupported display driver",
        r"unsupported CUDA version: driver",
        r"Unexpected error from cudaGetDeviceCount|CUDA driver initialization failed|CUDA initialization: "
        r"|CUDA unknown error",
        r"cuda runtime error \((?:30|35|38|100|804)\)",
        r"CUDA error(?: \(\d+\))?: (?:initialization error|system not yet initialized|unknown error|system"
        r" has unsupported display driver|unsupported display driver|driver shutting down|API call is not"
        r" supported|OS call failed|invalid device ordinal)",
        r"CUDA_ERROR_(?:UNKNOWN|NOT_INITIALIZED|SYSTEM_\w+|COMPAT_\w+|STUB_LIBRARY|INVALID_DEVICE"
        r"|OPERATING_SYSTEM)",
        r"kernel driver does not appear to be running|kernel version [\d.]+ does not match DSO version",
        r"torch\.cuda\.is_available\(\) is False",
        r"libcuda\.so(?:\.1)?\b.{0,20}(?:cannot open|not found|No such)",
        r"/dev/nvidia\S*: no such file|custom device \"?/dev/nvidia",
        r"Module nvidia(?:[-_]\w+)? not found|nvidia\.ko\b|nvidia-modprobe",
        r"No supported GPU\(s\) detected|No NVIDIA GPU detected|modprobe: \S+ .{0,40}\bnvidia",
        r"^No devices were found|driver_version\W{1,4}0\b.{0,80}cuda",
        r"installed version of the CUDA driver is",
        r"NVIDIA (?:kernel )?(?:driver|module).{0,80}(?:fail(?:ed|s)|not loaded|could not be loaded|not"
        r" installed|is missing)",
        r"CUDA driver is a stub library|nvml\w*\(?\)? failed: |Driver Not Loaded|nvidia-uvm kernel module",
        r"(?:unable to find|can ?not find|cannot load|Couldn't open CUDA library) (?:library )?libcuda\b"
        r"|libcuda\.so\S* (?:was )?not found",
        r"fail(?:ed|ure)? .{0,60}NVIDIA (?:GPU )?driver|(?:GPU|NVIDIA) drivers? (?:is |are )?not installed",
        remedy="set machine.image to a boot image whose NVIDIA driver fits GPU and container image, such as the "
        f"default: `glgpu gpus` names the driver of each GPU, {CUDA.url} what a CUDA version needs",
    ),
    _rule(
        ErrorClass.DRIVER,
        r"No CUDA GPUs are available|no CUDA-capable device|\bNo GPUs? (?:found|detected|available)\b(?! in)"
        r"|no CUDA devices?\b"
        r"|GPUs? (?:is|are) not visible|CUDA_ERROR_NO_DEVICE|cudaErrorNoDevice",
        cause="the program sees no GPU",
        remedy="look whether the container was started with a GPU, whether CUDA_VISIBLE_DEVICES hides it, and "
        "whether the boot image in machine.image brings a driver: `glgpu gpus` names the driver of each GPU",
    ),
)

DISK = (
    _rule(
        ErrorClass.DISK_FULL,
        r"No space left on (?:the )?device|\bENOSPC\b|disk quota exceeded|not enough (?:free )?(?:disk )?space",
        r"don't have enough free (?:disk )?space|insufficient (?:free )?disk space|out of disk space",
        r"disk(?: is)? full|write error: no space|not enough space on (?:the )?disk|storage is full",
        r"There is not enough space|PytorchStreamWriter failed writing file",
        cause="a disk is full",
        remedy="on the VM: set a larger machine.disk_gb; on the runner: make room, `docker system prune` removes "
        "what no container uses, and stopped containers; "
        f"{ERRORS_PAGE}",
    ),
)

CAPACITY = (
    _rule(
        ErrorClass.PREEMPTED,
        r"compute\.instances\.preempted|\b(?:was|been|got|gets|is being|were) pre-?empted",
        r"(?:because of|due to|by|on account of|after) (?:\w+ )?pre-?emption\b|\bpre-?empted\W{1,5}(?:is "
        r"|value )?TRUE\b",
        rf"{_NOT_IF}(?:could not|cannot|failed|stopped|aborted|cancell?ed|ended|shut down|lost)\b"
        r"[^.\n]{0,60}\bpre-?empt(?:ed|ion)\b",
        r"reason\W{1,4}preempted\b|(?-i:\b(?:[A-Z]+_)?PREEMPTED\b)(?!\W{0,4}(?:false|0|no|none)\b)"
        r"|ACPI G2 soft[- ]?off",
        r"(?:received|got) (?:a |the )?(?:termination|interruption) notice|(?:termination"
        r"|interruption) notice (?:received|from|for)",
        r"metadata(?: server)?\b.{0,60}(?:announce\w* (?:the )?(?:termination|shutdown)|termination (?:notice|event))",
        r"shut ?down (?:is )?imminent",
        rf"{_NOT_IF}\bis pre-?empted\b",
        rf"{_NOT_IF}\bpre-?empted by (?:Compute Engine|Google|GCE|GCP)\b",
        r"(?:instance|VM|node|machine) pre-?empt(?:ed|ion)\b",
        r"(?:spot|preemptible) (?:VM|instance|node)s? .{0,40}(?:reclaimed|terminated|stopped|shut down|interrupted)",
        r"Received pre-?emption|pre-?emption (?:signal|notice|event)|PreemptionError",
        r"Message: 14: VM \S+ stopped unexpectedly|Spot VM pre-?emption",
        cause="Google took the spot VM away",
        remedy="run the pipeline again: `glgpu run` on a laptop; `spot: never` buys a VM that is not preempted",
    ),
    _rule(
        ErrorClass.STOCKOUT,
        r"(?:ZONE_|REGION_)?RESOURCE_POOL_EXHAUSTED|insufficientCapacity|INSUFFICIENT_CAPACITY|\bstockout\b",
        r"\bSTOCKED_?OUT\b",
        r"(?:does not|doesn't|do not|did not) (?:currently )?have (?:enough|sufficient) (?:resources|capacity)",
        r"is currently unavailable in the (?:\S+ )?zone",
        r"(?:not|isn't) enough (?:resources|capacity) (?:available|in)",
        r"(?:zone|region) .{0,80}(?:out of|exhausted of) (?:capacity|resources)|resource pool (?:is )?exhausted",
        r"insufficient reserved capacity",
        r"(?:lack of|insufficient|no(?: available| more)?) capacity (?:in|for|available|to|at|left|found|remaining)",
        r"resources? (?:are|is) (?:currently )?(?:exhausted|unavailable) in (?:the )?(?:zone|region)",
        r"\bno (?:\w+ )?(?:GPU|VM|accelerator|instance)s? (?:are |is )?(?:currently )?available in (?:the )?(?:zone"
        r"|region)",
        r"(?:machine|accelerator|GPU|VM|instance)\b.{0,80}temporarily (?:unavailable|not available) in\b"
        r"|capacity (?:is )?(?:currently )?(?:not available|unavailable|exhausted)\b.{0,60}"
        r"(?:\bzones?\b|\bregions?\b|\b[a-z]+-[a-z]+\d)",
        r"\b(?:zone|region)\b.{0,60}(?:has|have) run out of|(?:limited|lack of|low) capacity in\b.{0,20}"
        r"(?:\bzone|\bregion|\b[a-z]+-[a-z]+\d)",
        r"(?:do|does|did) ?(?:not|n't) (?:currently )?have enough .{0,40}available in (?:this|the|that) (?:zone"
        r"|region)",
        r"GCE out of resources|GCE_STOCKOUT|\breason\W{1,4}resource_availability",
        r"(?:There is|We have) no more capacity in the zone|Try (?:a different|another) (?:zone|region)\b(?! of)",
        r"(?:resources? (?:are|is) insufficient|insufficient resources?|(?:currently )?out of (?:stock|resources"
        r"|capacity)"
        r"|sold out)\b.{0,60}(?:\bzones?\b|\bregions?\b|\b[a-z]+-[a-z]+\d(?:-[a-z])?\b)",
        r"\b(?:GPU|VM|accelerator|machine|instance|TPU)s?\b.{0,60}(?:out of stock|sold out"
        r"|currently (?:not available|unavailable) in)",
        r"\b(?:zone|region) .{0,80}(?:currently )?out of stock|not enough (?:\w+ )?(?:resources|capacity) (?:available"
        r"|in)",
        r"There are no available (?:GPU|VM|accelerator|instance|machine)s? .{0,40}(?:zone|region)",
        r"^(?:Error: )?Insufficient capacity\.?$|resources? (?:is |are )?exhausted in (?:all|every|any)\b.{0,20}\bzone",
        remedy="add zones or GPUs to machine.zones and machine.gpu: `glgpu gpus` lists where each is offered; or try "
        "later",
    ),
)

LIMITS = (
    _rule(
        ErrorClass.RATE_LIMIT,
        r"toomanyrequests: |reached your (?:unauthenticated |authenticated )?pull rate limit|increase-rate-limit",
        r"pull rate limit",
        cause="the registry has had too many pulls from this address or account",
        remedy="wait, or log in to the registry, which raises the limit: set GLGPU_REGISTRY_USER and "
        "GLGPU_REGISTRY_PASSWORD, and test them with `docker login REGISTRY`",
    ),
    _rule(
        ErrorClass.RATE_LIMIT,
        r"(?:\b429\b|Too ?Many ?Requests|rate limit)…huggingface|huggingface…(?:\b429\b|Too ?Many ?Requests"
        r"|rate limit)",
        cause="Hugging Face has had too many requests from this address or account",
        remedy="wait, or send a token, which raises the limit: name the CI variable that holds it under "
        "train.secrets (docs/reference/settings.md)",
    ),
    _rule(
        ErrorClass.RATE_LIMIT,
        r"(?:rate|user_?rate|daily) ?_?limit ?_?exceeded|RATE_LIMIT_EXCEEDED|RESOURCE_OPERATION_RATE_EXCEEDED",
        r"CONCURRENT_OPERATIONS_QUOTA_EXCEEDED|Too ?Many ?Requests",
        r"(?:exceeded|hit|over|API|secondary) (?:\S+ ){0,3}rate limit",
        r"Quota exceeded for quota (?:group|metric)…(?:per (?:second|minute|day|user|100 seconds)|Requests)",
        r"Resource has been exhausted \(e\.g\. check quota\)",
        r"(?:requests?|queries) per (?:second|minute|day)\b.{0,60}exceed|^Retry later$",
        r"You (?:have )?(?:exceeded|reached) .{0,40}rate limit",
        r"(?:operation|request|API) rate (?:limit )?exceeded|too frequent (?:operations|requests|calls)",
        r"rate limit(?:ing|ed)?\b.{0,40}(?:wait|retry|reached)|(?:are|is|been|being|were|was) rate[- ]limited\b",
        r"requested too many times|requests? (?:was|were|has been|have been|is being) throttled",
        cause="too many requests in a short time",
        remedy=f"wait a few minutes, then retry the job; where it was Google, the cloud project's limits: {QUOTAS.url}",
    ),
    _rule(
        ErrorClass.QUOTA_GLOBAL,
        r"\bGPUS[-_]ALL[-_]REGIONS\b",
        cause="the cloud project's quota GPUS_ALL_REGIONS is used up, or is still the 0 that a new project begins with",
        remedy=f"ask for more of GPUS_ALL_REGIONS: {QUOTAS.url}",
    ),
    _rule(
        ErrorClass.QUOTA_GLOBAL,
        r"Quota ['\"]?(?P<a>\w{1,40}?ALL_REGIONS\b)|\b(?P<b>\w{1,40}?[-_]ALL[-_]REGIONS\b)",
        cause="the cloud project's quota {a}{b} is used up, in all regions together",
        remedy=f"ask for more of {{a}}{{b}}: {QUOTAS.url}",
    ),
    _rule(
        ErrorClass.QUOTA_GLOBAL,
        r"Quota ['\"]?(?P<a>[\w-]+)['\"]? exceeded\.? +Limit: [\d.]+ globally",
        r"Insufficient (?:global|project) quota.{0,80}?resource:? \"?(?P<b>\w+)",
        cause="the cloud project's quota {a}{b} is used up",
        remedy=f"ask for more of {{a}}{{b}}: {QUOTAS.url}",
    ),
    _rule(
        ErrorClass.QUOTA_GLOBAL,
        r"(?:exceeded|reached|over) (?:your |the |its )?(?:allotted |allowed )?(?:project|global) quota\b",
        r"(?:exceeded|reached|over) (?:your |the )?quota (?:of|for|on) (?:the number of )?projects\b",
        remedy=f"ask for more: {QUOTAS.url}",
    ),
    _rule(
        ErrorClass.QUOTA_REGION,
        r"Quota ['\"](?P<a>[\w-]+)['\"] exceeded\.? +(?P<b>Limit: [\d.]+(?: in (?:region|zone) [\w-]+)?)",
        cause="the quota {a} is used up ({b})",
        remedy=f"name zones of another region, or ask for more: {QUOTAS.url}; `glgpu gpus` shows what is left where",
    ),
    _rule(
        ErrorClass.QUOTA_REGION,
        r"Quota ['\"]?[\w-]+['\"]? (?:has been )?exceeded|(?-i:\bQUOTA_EXCEEDED\b)|\bquotaExceeded\b",
        r"\bQuotaFailure\b|Quota limit ['\"]?[\w-]+['\"]? has been exceeded",
        r"Insufficient (?:regional |zonal )?quota|exceeds? (?:the )?quota|quota (?:metrics? )?exceed",
        r"Quota exceeded|exceed(?:s|ed|ing)?(?: \S+){0,4} quota\b|Quota (?:violated|exhausted)",
        r"(?:quota|limit) .{0,60}(?:is|was) (?:0|zero|used up)\b.{0,40}(?:GPU|region)|not enough quota|no quota",
        r"-per-project-(?:region|zone)\b|insufficientQuota|out of quota|quotas? (?:\w+ )?exceeded",
        r"\bquota failure\b|exceeds the allowed maximum of \d[^\n]{0,80}(?:GPU|CPU|accelerator|instance"
        r"|[A-Z]\d{1,3}\b)",
        r"Exceeded limit ['\"]?\w+['\"]? (?:on|for) resource|(?:allotted|allocated|allowed|insufficient) quota\b",
        r"Insufficient ['\"]?\w+['\"]? quota|(?:not enough|no more|insufficient) (?:\w+ ){0,2}quota\b"
        r"|quota .{0,40}is insufficient",
        r"\b(?:GPU|CPU|disk|instance|address)\w* limit (?:was |is )?(?:exceeded|reached)"
        r"|(?:reached|exceed(?:ed|s)) the maximum (?:number|amount) of .{0,40}\b(?:project|region|zone)\b",
        r"(?:not|n't) have (?:enough|sufficient) quota|quota (?:limit|allows)\b.{0,20} (?:of|for) 0\b",
        r"(?:reached|hit|over|at) (?:the|your) (?:quota|limit)\b.{0,60}\b(?:project|region|zone|quota)\b",
        r"limit of \d+ .{0,60}\breached\b.{0,60}quota|(?:increase|raise) (?:the |your )?quota(?: limit)?\b"
        r"|(?-i:(?:Request|request) )a quota increase",
        remedy=f"where it is a region's, name zones of another; or ask for more: {QUOTAS.url}; `glgpu gpus` shows "
        "what is left where",
    ),
    _rule(
        ErrorClass.RATE_LIMIT,
        _status("429"),
        cause="too many requests in a short time",
        remedy=f"wait a few minutes, then retry the job; where it was Google, the cloud project's limits: {QUOTAS.url}",
    ),
)

PROJECT = (
    _rule(
        ErrorClass.BILLING,
        r"BILLING_(?:DISABLED|NOT_\w+)|UREQ_PROJECT_BILLING\w*|has billing disabled",
        r"billing (?:must|has to|needs to|to) be enabled|requires? (?:an? )?(?:active )?billing",
        r"billing_?NotEnabled|(?:accountDisabled|billingNotActive)\b",
        r"billing (?:account )?(?:for (?:this |the |owning )*project(?: \S+)? )?(?:'\S+' )?is (?:\w+ in"
        r" state \w+|disabled|closed|absent|delinquent|inactive|not (?:active|enabled|found|open|in good"
        r"|linked|valid|associated))",
        r"billing account .{0,80}(?:not in good standing|is (?:closed|disabled|delinquent)|absent)",
        r"billing account (?:has no|does not have an?|without an?) valid payment",
        r"absent billing account|not have billing enabled|billing (?:is )?disabled",
        r"billing account (?:is )?(?:closed|not configured|missing)|enable billing",
        r"not (?:linked|attached|associated) (?:to|with) (?:a|an|any) (?:\w+ )?billing",
        r"(?:inactive|suspended|closed|delinquent|disabled) billing (?:state|status|account)",
        r"billing (?:state|status)\b.{0,60}(?:suspended|inactive|closed|delinquent|past due|overdue|not active)",
        r"billing (?:is|was) (?:being |currently |still |not yet )*(?:\(?re-?\)?)?(?:activated|deactivated|inactive"
        r"|off|suspended)\b",
        r"billing is not (?:yet )?(?:enabled|active|configured|set up)|not (?:yet )?(?:configured|set up"
        r"|activated) billing",
        r"account (?:is|has been|was) (?:delinquent|past due|in arrears)|(?:invoice|payment) (?:is )?(?:overdue"
        r"|past due)",
        r"check (?:the )?billing account|(?:billing|payment).{0,60}(?:suspended|overdue|past due)",
        r"free[- ]trial (?:\w+ ){0,2}?(?:account|user|customer|billing|project|credit|period)s?\b",
        r"(?:accounts?|projects?|users?) (?:in|on|during|with) (?:the |a |your )?free[- ]trial|during (?:the"
        r"|your) free trial",
        r"free[- ]trial (?:\w+ )?(?:ended|expired|over|exhausted)\b|upgrade (?:to a paid|your) (?:billing )?account",
        r"billing account .{0,60}(?:has been|was) (?:closed|disabled|suspended|deactivated)",
        r"no billing account|CONSUMER_SUSPENDED|Consumer '?\S+'? has been suspended",
        r"project (?:\S+ )?(?:has been|is|was) suspended",
        cause="billing is not active for the cloud project or is a free trial, or the project is suspended",
        remedy=f"link an open, paid billing account to the cloud project: {BILLING.url}, or `gcloud billing projects "
        "link PROJECT --billing-account ACCOUNT`",
    ),
    _rule(
        ErrorClass.API_DISABLED,
        r"(?P<a>[A-Z][\w\x20()-]{0,80} API) has not been used in project …/apis?/(?:api|library)/"
        r"(?P<b>[\w-]+)(?:\.googleapis\.com)?",
        cause="the {a} is not enabled in the cloud project",
        remedy="enable it: `gcloud services enable {b}.googleapis.com --project PROJECT`",
    ),
    _rule(
        ErrorClass.API_DISABLED,
        r"(?:API|service)s?:? [\['\"]?(?P<a>[\w.]+\.googleapis\.com)[\]'\"]?(?: (?:is|was|has))?(?: been| currently)*"
        r" (?:not (?:been )?(?:enabled|activated)|disabled)",
        r"(?-i:SERVICE_DISABLED)…\W(?P<b>[a-z]\w*\.googleapis\.com)",
        r"\bAPIs? (?:is|are) not enabled: \W?(?P<c>[a-z]\w*\.googleapis\.com)",
        r"Enable it by visiting \S+/apis?/(?:api|library)/(?P<d>[\w-]+\.googleapis\.com)",
        cause="the API {a}{b}{c}{d} is not enabled in the cloud project",
        remedy="enable it: `gcloud services enable {a}{b}{c}{d} --project PROJECT`",
    ),
    _rule(
        ErrorClass.API_DISABLED,
        r"Permission denied to enable service",
        r"accessNotConfigured|SERVICE_DISABLED|Access Not Configured|\bAPI has not been used in",
        r"\bAPI(?: \S+)? (?:is|was|has) (?:not (?:been )?(?:enabled|activated)|disabled)",
        r"(?:Engine|Cloud|Google|Manager|Credentials|googleapis?)\b[^\n]{0,80}\bAPI (?:is |has been )?(?:currently )?"
        r"(?:disabled|not enabled|deactivated)",
        r"APIs? (?:must|needs? to|to) be enabled|it is disabled\. (?:Enable it|Please enable)",
        r"service \S+\.googleapis\.com is not enabled|(?:enable|activate) the [\w\x20]{3,60} API\b",
        r"APIs? (?:is|are) not enabled|service '?[\w.]+googleapis\.com'? is not enabled",
        r"SERVICE_CONFIG_NOT_FOUND_OR_PERMISSION_DENIED.{0,80}not enabled|has not enabled the API",
        cause="an API is not enabled in the cloud project",
        remedy="enable the one that the text names; if none: `gcloud services enable compute.googleapis.com "
        "--project PROJECT`",
    ),
    _rule(
        ErrorClass.ORG_POLICY,
        r"Constraint ['\"]?(?:constraints/)?(?P<a>[\w.]+)['\"]? (?:is )?viola",
        r"constraints?['\"]?[:/ ]{1,3}['\"]?(?:customConstraints/|constraints/)?(?P<b>(?:compute|iam|gcp"
        r"|storage|serviceuser|essentialcontacts|sql|resourcemanager|custom|ainotebooks|container|run)\.\w+)",
        cause="the organisation policy {a}{b} forbids it",
        remedy=f"ask whoever keeps your organisation's policies about {{a}}{{b}}: {ORG_POLICIES.url}; `gcloud "
        "org-policies list --project PROJECT` shows them",
    ),
    _rule(
        ErrorClass.ORG_POLICY,
        r"(?:by|due to|violates?|violated|because of)(?: \w+){0,3} organi[sz]ation(?:'s|al)?(?: \w+)? polic(?:y|ies)",
        r"(?:denied by|custom) org polic|organi[sz]ation policy|violates constraint|vpcServiceControls",
        r"VPC Service Controls|prohibited by organi[sz]ation|do(?:es)? not belong to a permitted customer",
        r"org[- ]policy .{0,40}(?:denie|violat|forbid)",
        r"(?:ORG_POLICY|ORGANIZATION_POLICY|SECURITY_POLICY)_VIOLATED",
        r"Key creation is not allowed on this service account",
        r"is not allowed by (?:an? )?(?:organization|org) policy|restricted by (?:an )?organi[sz]ation",
        remedy=f"ask whoever keeps your organisation's policies: {ORG_POLICIES.url}; `gcloud org-policies list "
        "--project PROJECT` shows them",
    ),
)

STATE = (
    _rule(
        ErrorClass.STATE_ACCESS,
        r"Failed to (?:save|persist) state(?! lock)|errored\.tfstate",
        remedy="what Terraform made may stand in no state: `terraform state push errored.tfstate`, where that file was "
        "written; a run of glgpu needs none, and only if that was one: `glgpu destroy` finds its resources by name",
    ),
    _rule(
        ErrorClass.STATE_LOCK,
        r"ConditionalCheckFailedException",
        cause="Terraform's state is locked by another Terraform",
        remedy="wait for it; once nobody applies any more: `terraform force-unlock ID`. No state of glgpu lies in "
        "DynamoDB: this one is of other Terraform files",
    ),
    _rule(
        ErrorClass.STATE_LOCK,
        r"Error (?:releasing|unlocking)(?: the)? state|Failed to unlock (?:the )?state",
        rf"{_CANNOT}(?:releas|unlock)\w* .{{0,40}}\b(?:state|workspace|\S*tflock)\b",
        r"\b(?:(?:local|remote|Terraform(?:'s)?) state|lock)\b[^\n]{0,80}cannot be unlocked\b"
        r"|state lock was not released",
        r"lock ID .{0,60}(?:does not|doesn't|did not) match|LocalState not locked",
        cause="the lock of Terraform's state could not be given back, or is gone already",
        remedy="where no job holds it any more, unlock the state in GitLab (Operate > Terraform states, "
        "docs/reference/terraform.md) or remove the lock file from the bucket, then retry the job",
    ),
    _rule(
        ErrorClass.STATE_LOCK,
        r"state (?:is |blob is )?already locked|workspace (?:is )?already locked|Lock Info:",
        r"(?:423|409).{0,40}state.{0,20}locked",
        rf"{_STATE}…(?:HTTP remote state already locked|resource temporarily unavailable|response code 423"
        r"|pre-?conditions? you specified|Precondition Failed|conditionNotMet)",
        r"state lock (?:timeout|could not be acquired)|force-unlock",
        cause="Terraform's state of this run is locked by another job, or by one that was killed",
        remedy="wait for that job, or end the run: `glgpu destroy` breaks a lock that was left behind",
    ),
    _rule(
        ErrorClass.STATE_ACCESS,
        r"state snapshot was created by Terraform|state (?:file )?.{0,60}newer (?:version of )?(?:than current"
        r"|Terraform)",
        r"state .{0,80}(?:written|created) by a newer",
        cause="Terraform's state was written by a newer Terraform than the one that reads it",
        remedy="use that Terraform or a newer one, everywhere in the pipeline: `terraform version`; the state itself "
        "is whole (docs/reference/terraform.md)",
    ),
    _rule(
        ErrorClass.STATE_ACCESS,
        rf"{_STATE}…bucket (?:doesn't|does not) exist|bucket (?:doesn't|does not) exist…{_STATE}|{_STATE}…NoSuchBucket",
        cause="the bucket that is to hold Terraform's state is not there",
        remedy="name one that exists, or make it: `gcloud storage buckets create gs://BUCKET --location LOCATION`; "
        "`glgpu doctor` looks it up",
    ),
    _rule(
        ErrorClass.STATE_ACCESS,
        r"No state file was found|state file does not have a .version|Unsupported state file format",
        r"state file could not be parsed",
        rf"(?:{_STATE}|state file)…(?:invalid character '|cannot unmarshal|unexpected end of JSON"
        rf"|Unsupported state file)",
        cause="what answers where Terraform's state is looked for is no state: nothing, another file, or some page",
        remedy="look at the address and at what lies there (Operate > Terraform states in GitLab, "
        "docs/reference/terraform.md); a proxy's or a log-in page looks like this too",
    ),
    _rule(
        ErrorClass.STATE_ACCESS,
        r"HTTP remote state endpoint (?:requires|invalid) auth|Unable to read remote state",
        rf"{_STATE}…(?:{_status('40[134]')}|does not have storage\.|access denied"
        r"|AccessDenied|Permission .{0,40}denied|permission denied|Forbidden|Unauthorized"
        r"|(?-i:PERMISSION_DENIED))",
        rf"(?:does not have storage\.|AccessDenied)…{_STATE}",
        cause="access to Terraform's state is refused, or there is none where it is looked for",
        remedy="GitLab wants Maintainer rights for it: set GLGPU_GITLAB_TOKEN, or `state: local`; a bucket wants the "
        "role storage.objectAdmin (docs/how-to/google-cloud-access.md)",
    ),
)

IMAGES_DENIED = (
    _rule(
        ErrorClass.NETWORK,
        r"gave HTTP response to HTTPS",
        cause="the other side, often a registry, speaks plain HTTP where HTTPS was asked for",
        remedy="give it a certificate, or use a registry that has one, in train.image; a registry that must stay "
        "plain has to stand among the engine's insecure ones, which `docker info` lists",
    ),
    _rule(
        ErrorClass.NETWORK,
        rf"(?:fail\w* to pull|error pulling|failed to resolve reference|docker pull )"
        rf"(?:(?!{_REGISTRY_SAID_NO})[\s\S]){{0,400}}?{_NO_TRANSPORT}",
        cause="the way to the image's registry is closed or broken",
        remedy="check names, proxies, firewalls and certificates on the way to the registry, then retry the job; "
        "`docker manifest inspect IMAGE` tells whether it can be reached",
    ),
    _rule(
        ErrorClass.IMAGE_PULL,
        r"(?:Unauthenticated request|Anonymous caller)[^\n]{0,200}(?:artifactregistry|\bgcr\b|pkg\.dev|registr"
        r"|\bimage\b)",
        r"(?:pkg\.dev|\bgcr\.io|registr(?:y|ies)\b|\bimage\b)[^\n]{0,200}(?:Unauthenticated request|Anonymous caller)",
        cause="the registry of the container image knows no caller: there was no login",
        remedy="log in to it: set GLGPU_REGISTRY_USER and GLGPU_REGISTRY_PASSWORD, and test them with `docker login "
        "REGISTRY`",
    ),
    _rule(
        ErrorClass.NETWORK,
        r"(?:docker login|Error response from daemon)[^\n]{0,300}/v2/[^\n]{0,60}x509: ",
        cause="the registry's certificate is not trusted",
        remedy="have the machine that pulls trust the authority that signed it, or use a registry with a public "
        "certificate in train.image: `docker manifest inspect IMAGE` tells whether it is trusted",
    ),
    _rule(
        ErrorClass.IMAGE_PULL,
        r"no matching manifest for [^\n]{1,80}|no match for platform in manifest",
        cause="the container image was not built for the VM's architecture",
        remedy="build it for linux/amd64 and push it: `docker build --platform linux/amd64 --tag IMAGE .`; `docker "
        "manifest inspect IMAGE` lists what there is",
    ),
    _rule(
        ErrorClass.IMAGE_PULL,
        r"image '[^'\n]{1,200}' does not exist in registry|invalid run-image",
        r"pull access denied|manifest unknown|missing signature key|was deleted or has expired|MANIFEST_UNKNOWN",
        r"NAME_UNKNOWN|NAME_INVALID|invalid reference format|name unknown|manifest for \S+ not found",
        r"image operating system .{0,40}cannot be used on|no such manifest: "
        r"|repository does not exist"
        r"|no basic auth credentials|ErrImagePull"
        r"|ImagePullBackOff",
        r"InvalidImageName|error from registry: |pulling (?:the )?image …(?:denied|unauthorized|not found)",
        r"(?:(?-i:docker|daemon|registry|/v2/|manifest|image|pull).{0,400}"
        r"|^)(?<!permission\x20)(?<!access\x20)(?:unauthorized|denied): ",
        r"requested access to the resource is denied|failed to authorize: ",
        r"fetch (?:anonymous|oauth) token…40[134]|failed to resolve reference …(?:not found|40[134]|denied)",
        r"docker\.io/\S+: not found|unauthorized: ",
        r"(?:authentication required|incorrect username or password).{0,120}(?:registry|docker)",
        r"failed to pull image(?!…(?:timeout|timed out|no such host|refused|reset|x509|50[0234]|EOF|toomanyrequests))",
        r"Head \"?https?://[^\s\"]+/v2/\S+: (?:denied|unauthorized|no basic)",
        r"/v2/[^\s\"]+/(?:manifests|blobs)/[^\s\"]+\"?:? .{0,60}(?:40[134]|denied|unauthorized|forbidden|not found)",
        r"filesystem layer verification failed",
        r"image \S+ not found.{0,60}(?:registry|pull)|Unable to find image …(?:denied|unauthorized|not found)",
        r"login attempt to https?://\S+ failed with status: 40[13]|invalid username/password\b",
        r"/v2/\S* .{0,40}(?:bad credentials|wrong username|authentication (?:is )?required|access forbidden)",
        r"(?:registry|docker://|manifest|logging in(?:to| to)).{0,200}"
        r"(?:authentication (?:is )?required|bad credentials|wrong username|incorrect username)",
        r"repository \S+ not found: does not exist or no pull access|parsing HTTP 4\d\d response body"
        r"|\bunknown blob\b",
        r"interactive login from a non TTY|docker login.{0,60}(?:fail|wrong|denied)|daemon.{0,60}Content-Length header",
        r"wrong diff id|Job failed \(system failure\): Error: No such image|Preparation failed: Error: No such image",
        r"(?:docker|daemon|podman|containerd).{0,80}No such image\b",
        remedy="check train.image and the registry's login (GLGPU_REGISTRY_USER, GLGPU_REGISTRY_PASSWORD): `docker "
        "manifest inspect IMAGE` tells whether it can be had",
    ),
)

RIGHTS = (
    _rule(
        ErrorClass.AUTH,
        r"Anonymous caller|\bunauthenticated (?:request|caller|call|user)s?\b",
        r"\banonymous (?:request|access|user|client)s?\b.{0,80}(?:permission|not allowed|denied|does not have)",
        cause="Google was asked by nobody: the call carried no credentials",
        remedy=f"set up Workload Identity Federation or GOOGLE_CREDENTIALS ({ACCESS_PAGE}); on a laptop: `gcloud auth "
        "application-default login`",
    ),
    _rule(
        ErrorClass.PERMISSION,
        r"Some requests did not succeed:[ -]+Insufficient Permission",
        r"insufficient (?:authentication |OAuth |access )?scopes|ACCESS_TOKEN_SCOPE_INSUFFICIENT"
        r"|correct permission scopes",
        r"scope\(s\) are not authorized|insufficientScopes?\b",
        cause="the credentials were issued for too narrow a scope; a role does not widen it",
        remedy="use credentials with the scope cloud-platform: on a laptop `gcloud auth application-default login`; "
        f"in CI Workload Identity Federation ({ACCESS_PAGE}); on a VM its own access scopes count",
    ),
    _rule(
        ErrorClass.PERMISSION,
        r"iam\.serviceAccounts\.(?P<a>actAs)\b|\bactAs\b|SERVICE_ACCOUNT_ACCESS_DENIED",
        r"does not have access to service account|permission to act as (?:the )?service_?\s?account",
        cause="the caller may not use the VM's service account (iam.serviceAccounts.actAs)",
        remedy="let it: `gcloud iam service-accounts add-iam-policy-binding THE_VM_S_ACCOUNT --member "
        f"serviceAccount:THE_CALLER --role roles/iam.serviceAccountUser` ({ACCESS_PAGE})",
    ),
    _rule(
        ErrorClass.PERMISSION,
        r"iam\.serviceAccounts\.(?P<a>getAccessToken|getOpenIdToken|signBlob|signJwt|implicitDelegation)",
        cause="the caller may not act as the service account (iam.serviceAccounts.{a})",
        remedy="let it. In CI the federated identity: `gcloud iam service-accounts add-iam-policy-binding ACCOUNT "
        "--member principalSet://IDENTITIES --role roles/iam.workloadIdentityUser`; on a laptop that user: `gcloud "
        "iam service-accounts add-iam-policy-binding ACCOUNT --member user:YOU --role "
        f"roles/iam.serviceAccountTokenCreator` ({ACCESS_PAGE})",
    ),
    _rule(
        ErrorClass.PERMISSION,
        r"(?:failed to generate Google Cloud|federated token|principal(?:Set)?://|sts\.googleapis)"
        r"…(?:(?-i:PERMISSION_DENIED)|caller does not have permission)",
        cause="the caller may not act as the service account",
        remedy="let the federated identity: `gcloud iam service-accounts add-iam-policy-binding ACCOUNT --member "
        f"principalSet://IDENTITIES --role roles/iam.workloadIdentityUser` ({ACCESS_PAGE})",
    ),
    _rule(
        ErrorClass.PERMISSION,
        r"(?:impersonat\w+ ?|generateAccessToken|generateIdToken)…(?:(?-i:PERMISSION_DENIED)"
        r"|caller does not have permission)",
        cause="the caller may not act as the service account that it impersonates",
        remedy="let that user, and no other: `gcloud iam service-accounts add-iam-policy-binding ACCOUNT --member "
        f"user:YOU --role roles/iam.serviceAccountTokenCreator` ({ACCESS_PAGE})",
    ),
    _rule(
        ErrorClass.PERMISSION,
        r"Code: 4033\b|(?:start-iap-tunnel|\biap\b|Identity-Aware Proxy)…(?:4033|not authorized)"
        r"|\[?4033: ['\"]?not authorized|iap\.tunnelInstances",
        cause="the caller may not use IAP's tunnel to the VM",
        remedy="let it: `gcloud projects add-iam-policy-binding PROJECT --member serviceAccount:THE_CALLER --role "
        f"roles/iap.tunnelResourceAccessor` ({IAP.url})",
    ),
    _rule(
        ErrorClass.PERMISSION,
        r"(?:Required ['\"]?|does not have |Permissions?:? ['\"\[]*)(?P<a>storage\.objects\.(?:get|list))\b",
        cause="the caller lacks the permission {a} on the bucket, or the bucket is another's",
        remedy="let it read there: `gcloud storage buckets add-iam-policy-binding gs://BUCKET --member "
        f"serviceAccount:ACCOUNT --role roles/storage.objectViewer` ({ACCESS_PAGE})",
    ),
    _rule(
        ErrorClass.PERMISSION,
        r"(?:Required ['\"]?|does not have |Permissions?:? ['\"\[]*)"
        r"(?P<a>storage\.(?:objects|multipartUploads)\.\w+)",
        cause="the caller lacks the permission {a} on the bucket",
        remedy="let it write there: `gcloud storage buckets add-iam-policy-binding gs://BUCKET --member "
        f"serviceAccount:ACCOUNT --role roles/storage.objectUser` ({ACCESS_PAGE})",
    ),
    _rule(
        ErrorClass.PERMISSION,
        r"['\"](?P<a>orgpolicy\.\w+\.\w+)['\"]",
        cause="the caller lacks the permission {a}, which is granted on organisations alone",
        remedy="ask the organisation's administrators, to set the policy or to grant the role: `gcloud org-policies "
        "list --project PROJECT` shows what is set",
    ),
    _rule(
        ErrorClass.PERMISSION,
        r"Required ['\"]?(?P<a>[a-z]\w*\.[\w.]+\w|<permission>)['\"]? permission",
        r"Permissions?:? ['\"\[]*(?P<b>[a-z]\w*\.[\w.]+\w)['\"\]]* (?:is |are )?(?:required|denied|missing)",
        cause="the caller lacks the permission {a}{b}",
        remedy="grant a role with {a}{b} to the account that glgpu uses: `gcloud projects "
        f"add-iam-policy-binding PROJECT --member serviceAccount:ACCOUNT --role ROLE` ({ACCESS_PAGE})",
    ),
    _rule(
        ErrorClass.PERMISSION,
        r"does not have (?P<a>[a-z]\w*\.\w[\w.]*\w) (?:access|permission)",
        r"missing (?:the )?(?:required )?(?:IAM )?permissions?:? ['\"\[]*(?P<b>[a-z]\w*\.\w[\w.]*\w)",
        cause="the caller lacks the permission {a}{b}",
        remedy="grant a role with {a}{b} to the account that glgpu uses: `gcloud projects "
        f"add-iam-policy-binding PROJECT --member serviceAccount:ACCOUNT --role ROLE` ({ACCESS_PAGE})",
    ),
)

CREDENTIALS = (
    _rule(
        ErrorClass.TRANSIENT,
        r"(?:cannot fetch token|request discovery document|obtain(?:ing)? (?:an )?access token)[^\n]{0,80}\b50[0234]\b",
        remedy="the other side failed and may work again: retry the job; `glgpu doctor` shows whether it does",
    ),
    _rule(
        ErrorClass.NETWORK,
        r"refreshing your current auth tokens…(?:Max retries exceeded|Unable to find the server|Failed to establish"
        r"|timed out|Connection aborted)",
        cause="the way to Google's log-in is closed or broken",
        remedy=f"check names, proxies, firewalls and certificates on the way to Google, then retry the job; {DOCTOR}",
    ),
    _rule(
        ErrorClass.PERMISSION,
        r"\bVault\b[^\n]{0,120}\b(?:40[13]\b|permission denied)",
        r"(?<!\w)403\b[^\n]{0,120} for url: https?://(?!\S*(?:google|gcr\.io|pkg\.dev|gitlab))\S",
        cause="",
        remedy="a site that is not Google's refuses the call: renew the token that is sent there, or ask its owners "
        "for the right; what the training needs goes under train.secrets (docs/reference/settings.md)",
    ),
    _rule(
        ErrorClass.AUTH,
        r"rejected by the attribute condition|sts\.googleapis\.com…(?:error|40[0-3])|federated token",
        r"invalid_target|(?:audience|issuer) in (?:the )?ID Token|ID Token issued at|stale to sign-in",
        r"Identity Pool subject token|value for \"?audience\"?|given credential('s)? |mapped attribute",
        r"google\.subject|attribute (?:condition|mapping)s?\b(?! must).{0,80}(?:reject|denied|deny|fail|invalid|not"
        r"|missing|evaluat)|connecting to the given credential",
        r"workload ?identity ?(?:pool|federation|provider).{0,120}(?:invalid|denied|expired|does not exist|disabled)",
        r"identity token.{0,60}(?:expired|invalid|malformed)|OIDC token .{0,80}(?:expired|invalid|fail)",
        remedy=f"check GLGPU_WIF_PROVIDER, its audience and its conditions ({ACCESS_PAGE}, {FEDERATION.url})",
    ),
    _rule(
        ErrorClass.NETWORK,
        rf"(?:cannot fetch token|metadata\.google\.internal|oauth2\.googleapis\.com|TransportError)"
        rf"[^\n]{{0,300}}{_NO_TRANSPORT}",
        cause="the way to Google's log-in is closed or broken",
        remedy=f"check names, proxies, firewalls and certificates on the way to Google, then retry the job; {DOCTOR}",
    ),
    _rule(
        ErrorClass.CODE,
        r"Submodule '[^'\n]{1,200}' \(…(?:HTTP Basic: Access denied|Authentication failed for )",
        cause="a submodule lies in a project that the job may not read",
        remedy="put this project on that one's job token allow-list, and let whoever pushes be its member, or set "
        "`code: job`, which takes the job's own checkout; `git ls-remote URL` tells who may read it",
    ),
    _rule(
        ErrorClass.GITLAB_AUTH,
        r"Gitlab(?:Authentication|Http|Get|Create|List|Update|Delete)?Error\W{1,3}40(?:1|3: (?:403"
        r" )?\W*insufficient_scope)",
        r"insufficient_scope|insufficient_granular_scope|No GitLab token\b|GitLab(?:'s)? (?:\w+ )?token (?:is|has"
        r"|was) (?:invalid|expired|revoked)|GitLab (?:\w+ )?API\b[^\n]{0,80}\b40[13]\b",
        r"The request requires higher privileges than provided by the access token|HTTP Basic: Access denied",
        r"Token (?:was|has been) (?:revoked|expired)\. You (?:have|can)|Token is expired\. You can",
        r"(?:gitlab\.exceptions|PRIVATE-TOKEN|JOB-TOKEN|CI_JOB_TOKEN|/api/v4"
        r"|gitlab\.[\w-]+/).{0,200}(?:\b401\b|invalid_token|Unauthorized|expired)",
        r"\"message\" ?: ?\"401 Unauthorized\"|\"error\" ?: ?\"invalid_token\"|Invalid (?:CI )?job token",
        r"401 Unauthorized[\s\S]{0,100}(?:gitlab\.\w|/api/v4)|job token .{0,40}(?:invalid|expired)",
        r"Authentication failed for 'https?://[^']*gitlab|Git credentials? .{0,60}gitlab.{0,60}expired",
        cause="GitLab does not accept the token, or it may not do this",
        remedy="renew GLGPU_GITLAB_TOKEN: a project access token with the role Maintainer and the scope api "
        f"({TOKENS.url})",
    ),
    _rule(
        ErrorClass.AUTH,
        r"wandb…(?:api_key not configured|Unable to authenticate|API key.{0,40}(?:invalid|must be)"
        r"|permission denied|40[13])",
        r"huggingface…(?:40[13] Client Error|gated repo|Invalid (?:user token|username or password)"
        r"|awaiting a review)",
        r"(?:gated repo|Invalid credentials in Authorization header|Token is required)…huggingface|GatedRepoError",
        cause="a service that the training uses does not accept its credentials, or was given none",
        remedy="name the CI variable with its token under train.secrets (docs/reference/settings.md)",
    ),
    _rule(
        ErrorClass.AUTH,
        r"\(gcloud\.[\w.-]+\)[\s\S]{0,300}\$ gcloud auth login",
        cause="gcloud's own login is missing or no longer good",
        remedy=f"log gcloud in: `gcloud auth login`; what glgpu and Terraform use is another login ({ACCESS_PAGE})",
    ),
    _rule(
        ErrorClass.AUTH,
        r"(?-i:\bUNAUTHENTICATED\b)|Invalid (?:OAuth )?Credentials|invalid authentication credentials",
        r"missing (?:a )?(?:required|valid) (?:authentication|API key)|could(?: not|n't) find default credentials",
        r"No credentials loaded|neither `credentials` nor",
        r"default credentials (?:were|are|was) not (?:found|available)",
        r"could not automatically determine credentials|DefaultCredentialsError|invalid_grant|invalid_client",
        r"unauthorized_client|invalid_rapt|invalid_scope",
        r"(?:Google|Application)[ -]Default[ -]Credentials .{0,80}(?:not|unavailable|missing|invalid|expired)",
        r"Unable to acquire impersonated credentials|impersonat\w+.{0,120}(?:status code 40|unable|fail)",
        r"(?-i:\bRefreshError\b)|problem refreshing your current auth tokens",
        r"Reauthentication (?:is )?(?:required|failed)",
        r"reauth(?:entication)? (?:is )?(?:required|related error|failed)|not currently have an active account",
        r"\bACTIONS_ID_TOKEN_REQUEST_(?:TOKEN|URL)\b",
        r"does not have any valid credentials|gcloud auth (?:application-default )?(?:login|activate)",
        r"(?:could not|cannot|unable to) (?:fetch|refresh|generate|obtain|get|retrieve)(?: \w+){0,2}"
        r" (?:access )?token",
        r"Token has been expired or revoked|Invalid JWT|ACCESS_TOKEN_(?:EXPIRED|TYPE_UNSUPPORTED)",
        r"CREDENTIALS_MISSING|expired (?:access )?token|token (?:has |is )?expired|API key not valid",
        r"API keys are not supported|API_KEY_INVALID|Login Required\b|(?-i:\bauthError\b)",
        r"Expected OAuth 2 access token|JSON credentials are not valid|does not have a valid type",
        r"Could not (?:deserialize|parse) (?:the )?(?:provided )?(?:key|certificate|public key)",
        r"No key could be detected|service account (?:info|key) .{0,60}(?:not|invalid|disabled|expired)",
        r"credentials?\b.{0,200}(?:invalid character '|cannot unmarshal|unexpected end of JSON)",
        r"invalid private key|private key should be a PEM|credentials? file .{0,60}(?:not|invalid)",
        r"does not contain a client_email|Unable to parse (?:the )?(?:JSON )?credentials",
        r"not in the expected format\. The fields|failed to generate Google Cloud"
        r"|gcloud\.auth\.[\w.-]+\)(?! Could not reach)",
        r"google-github-actions/auth failed|could not read json file|service account not enabled",
        r"error getting credentials|(?:you|user) (?:have |has )?(?:denied|not granted|declined) (?:the app )?"
        r"(?:access|consent) (?:to|for)\b|Authorization failed because|\bconsent_required\b|error 403: access_denied",
        r"Attempted to load application default credentials|no application default credentials"
        r"|Bearer token is (?:invalid|expired)",
        r"Invalid (?:service account|credentials?) (?:json|file|key)|(?-i:MutualTLSChannelError)",
        r"refresh handler callback|credentials? (?:have|has) expired|please (?:log|sign) in again",
        r"GOOGLE_APPLICATION_CREDENTIALS.{0,120}(?:not found|no such file|does not exist)|(?:not found|no such file"
        r"|does not exist).{0,60}GOOGLE_APPLICATION_CREDENTIALS|valid service account key|Unexpected credentials type",
        r"account has been (?:deleted|disabled)|requires a quota project|No valid credentials\b",
        r"metadata\.google\.internal(?!\W{0,3}(?:Name|Temp|nodename))…(?:status|Failed|not defined)",
        r"(?<!resolve\x20)(?:Failed|Unable|not) (?!resolv).{0,60}metadata(?:\.google| server|server)",
        r"instance/service-accounts/\S+ not defined|Compute Engine Metadata server unavailable",
        r"(?:googleapis?|google\.|GCP|Google Cloud)…(?:401 Unauthorized|Error 401)|account not found.{0,40}grant",
        cause="Google does not accept the credentials, or there are none",
        remedy=f"set up Workload Identity Federation or GOOGLE_CREDENTIALS ({ACCESS_PAGE}); on a laptop: `gcloud auth "
        "application-default login`",
    ),
)

PLACES = (
    _rule(
        ErrorClass.CONFIG,
        r"(?:machine|VM|instance|disk|accelerator|GPU)s? (?:types?|family|series"
        r"|shapes?):? [\[\"']?[a-z0-9][\w.-]*[\]\"']?"
        r" (?:requires|needs|only supports|does not allow|must (?:have|be|use)|cannot be (?:used|combined)|(?:is )?in"
        r"compatible with|is not (?:compatible|allowed) with)\b",
        r"(?:not (?:supported|allowed|compatible)|cannot be used|incompatible) (?:together )?(?:by|with|for"
        r"|on) (?:the )?"
        r"(?:machine (?:type|family|series)|accelerators?\b|provisioning model|this provisioning|reservations?\b)",
        r"boot disk architecture|machine type architecture|architecture .{0,40}not compatible with (?:the )?machine",
        r"cross-project references? .{0,60}not allowed|not in the same (?:region|zone|network) as|must be in the same"
        r" (?:region|zone|network)\b",
        r"(?:spot|preemptible|provisioning model)\b.{0,60}cannot be used (?:with|together)",
        remedy="choose what goes together in glgpu.yml: machine, GPU, disk and network (docs/reference/settings.md); "
        f"`glgpu gpus` lists the machines of each GPU ({GPU_ZONES.url})",
    ),
    _rule(
        ErrorClass.NOT_AVAILABLE,
        r"(?:machine|accelerator|disk|guest accelerator) ?types?.{0,160}(?:(?:does|do) not exist|is not"
        r" (?:available|supported|offered)|are not (?:available|supported)(?! in regional| for instances)|was not found"
        r"|not found|cannot be found|could not be found|unavailable)",
        r"/(?:acceleratorTypes|machineTypes|diskTypes)/\S+?['\"]?,? (?:was )?not found",
        r"(?:does not|doesn't) (?:exist in|support) (?:the )?(?:zone|GPU)|does not exist in zone",
        r"Machine type specified doesn't exist",
        r"Invalid (?:machine|accelerator|disk) ?type \S+ (?:in|for) (?:the )?(?:zone|region)\b",
        r"referenced (?:accelerator|machine|disk)Type resource cannot be found",
        r"/(?:acceleratorTypes|machineTypes|diskTypes)/[^'\"\s]+['\"]\.? .{0,80}(?:not (?:found|exist"
        r"|supported|available)|cannot be found)",
        r"(?:is|are) not (?:available|supported|offered|allowed) in (?:the )?(?:specified |requested |this "
        r"|given )*(?:zone|region|location)\b",
        r"not supported (?:by|in) zone",
        r"(?:GPU|accelerator|machine family|machine series)\S* .{0,80}(?:not|only) (?:available|supported"
        r"|offered) (?:in|for)",
        r"(?:no longer|not) (?:available|supported|offered).{0,60}nvidia-",
        r"nvidia-tesla-k80.{0,80}(?:retired|no longer|deprecated)|No zones? (?:found|available|offer)",
        r"doesn't (?:offer|support) (?:the )?(?:GPU|accelerator|machine)",
        r"\b(?:zone|region)\b.{0,60}does not (?:offer|support) (?:the )?(?:GPU|accelerator|machine)",
        remedy=f"name another zone or type: `glgpu gpus` lists where each GPU is offered ({GPU_ZONES.url})",
    ),
    _rule(
        ErrorClass.IMAGE,
        r"Failed to find image|Could not fetch image resource|image resource could not be found",
        r"Could not find (?:the )?image|could not find any (?:non-deprecated )?image",
        r"/images/[^'\"\s]*['\"]?,? (?:was |is )?(?:not found|obsolete|deleted)",
        r"referenced image resource cannot be found|Error (?:resolving|getting|retrieving) (?:source )?image",
        r"image family .{0,120}(?:not found|does not exist|no longer|deprecated|empty)",
        r"No (?:\w+ )?images? .{0,60}(?:found|match).{0,60}famil",
        r"/(?:imageFamilyViews|images/family)/[^'\"\s]*['\"]?,? (?:was |is )?not found",
        r"(?:sourceImage|source_image|boot image)…(?:not found|cannot be found|does not exist|not valid"
        r"|invalid|deprecated|obsolete)",
        r"/global/images/…(?:was not found|not found|cannot be found|deprecat|obsolete)|URL of the source image",
        r"image '?\S+'? (?:does not exist|(?:was |is |be )?not found|cannot be found|is not available) (?:at|in|on"
        r"|with) "
        r"(?:the )?(?:GCP|GCE|Google|Compute Engine|zone|provider|cloud)",
        r"source image .{0,80}(?:not|invalid)|image \S+ (?:has been|was|is) (?:deprecated|obsolete|deleted)",
        cause="the VM's boot image, or its family, cannot be had",
        remedy="set machine.image to one that exists: `gcloud compute images list --project "
        "deeplearning-platform-release`",
    ),
)

REPOSITORIES = (
    _rule(
        ErrorClass.CODE,
        rf"{_SSH_HOST_KEY}[\s\S]{{0,200}}?(?:Could not read from remote|fatal: )",
        rf"(?:Cloning into|\bgit@|git submodule update)[^\n]{{0,200}}(?:\n[^\n]{{0,200}})?{_SSH_HOST_KEY}",
        cause="the git server's SSH host key is unknown there, or not the one that is known",
        remedy="compare it with the key that the git server publishes and add it to known_hosts, or set `code: job`, "
        "which needs no git on the VM; `git ls-remote URL` tells whether it works",
    ),
    _rule(
        ErrorClass.TRANSIENT,
        r"\bRPC failed\b[^\n]{0,80}\b(?:HTTP|error:?) 5\d\d\b|unable to access '[^\n]{0,300}returned error: 5\d\d\b",
        cause="the git server failed",
        remedy="it may work again: retry the job, or set `code: job`, which needs no git on the VM; `git ls-remote "
        "URL` tells whether it answers",
    ),
    _rule(
        ErrorClass.NETWORK,
        rf"{_NO_WAY}…{_REPOSITORY}|{_REPOSITORY}…{_NO_WAY}",
        remedy="the way to the git server is closed or broken: set `code: job`, which needs none from the VM "
        "(docs/reference/settings.md)",
    ),
    _rule(
        ErrorClass.CODE,
        r"over its data quota|\bLFS\b.{0,120}\b(?:bandwidth|quota)\b",
        cause="the repository's Git LFS quota is used up",
        remedy="ask the repository's owner for more; what the training reads from elsewhere needs no Git LFS "
        "(docs/reference/settings.md)",
    ),
    _rule(
        ErrorClass.CODE,
        r"Could not read from remote repository|couldn't find remote ref",
        r"fatal: (?:Could not parse object|bad revision|invalid refspec|bad object|ambiguous argument|remote error: )",
        r"overwritten by checkout|Repository or object not found|not our ref|Repository not found(?!.{0,40}url)",
        r"did not contain [0-9a-f]{40}|reference is not a tree|unadvertised object|fatal: repository …not found",
        r"project you were looking for could not be found|not allowed to download code",
        r"Remote branch \S+ not found|No url found for submodule",
        r"(?:clone of|fetch of submodule|submodule) …failed|upload-pack: not our",
        r"Permission to \S+ denied to \S+|does not appear to be a git repository|not a git repository"
        r"|dubious ownership",
        r"(?:could not|cannot) (?:read|fetch|clone) .{0,60}(?:repository|submodule|Username)",
        r"could not read (?:Username|Password)|terminal prompts disabled|Authentication failed for '",
        r"Support for password authentication was removed|pathspec '.{0,120}did not match any",
        r"unknown revision or path|'[^'\n]{1,200}' is not a commit\b|bad object [0-9a-f]{7,}|unable to read tree",
        r"smudge (?:filter lfs failed|error)|info/refs not found",
        r"\bLFS\b.{0,120}(?:error|fail|quota|not found|missing)",
        r"git-lfs.{0,60}(?:not found|fail)|shallow update not allowed",
        r"fatal: unable to access …(?:returned error: 40[134]|\b403\b|\b404\b)"
        r"|unable to access '…returned error: 40[134]",
        r"remote: (?:ERROR|HTTP Basic|The project|Not Found|Forbidden)",
        r"(?:deploy key|key) .{0,40}(?:is not|does not have) .{0,40}(?:allowed|access).{0,40}(?:project|repositor)",
        remedy="check that the commit is pushed and that the project and its submodules can be read (`git ls-remote "
        "URL` tells), or set `code: job`",
    ),
)

WAY_TO_THE_VM = (
    _rule(
        ErrorClass.SSH,
        rf"{_SSH_HOST_KEY}[\s\S]{{0,120}}?\b(?:github|gitlab|bitbucket)\b"
        rf"|\b(?:github|gitlab|bitbucket)\b[\s\S]{{0,120}}?{_SSH_HOST_KEY}|host key for (?:github|gitlab|bitbucket)",
        cause="the git server's SSH host key is unknown there, or not the one that is known",
        remedy="compare it with the key that the git server publishes and mend known_hosts, or set `code: job`, "
        "which needs no git on the VM; `git ls-remote URL` tells whether it works",
    ),
    _rule(
        ErrorClass.SSH,
        r"REMOTE HOST IDENTIFICATION HAS CHANGED|host key mismatch|host key for \S+ has changed"
        r"|knownhosts: key mismatch",
        cause="the machine that answers shows another SSH host key than the one that is known",
        remedy="compare its fingerprint with the one on the VM's serial console (`gcloud compute instances "
        "get-serial-port-output NAME --zone ZONE`); only if the address is that of the run's VM and the key did "
        "change, end the run: `glgpu destroy`",
    ),
    _rule(
        ErrorClass.SSH,
        rf"{_SSH_HOST_KEY}|can't be established…fingerprint",
        cause="the SSH host key of the machine that answers is not known",
        remedy="compare its fingerprint with the one on the VM's serial console (`gcloud compute instances "
        "get-serial-port-output NAME --zone ZONE`), or with what another server, such as git's or a registry's, "
        "publishes; where they agree, add the key to known_hosts",
    ),
    _rule(
        ErrorClass.SSH,
        r"Permission denied \((?:publickey|password|keyboard|gssapi|hostbased)|Too many authentication failures"
        r"|asyncssh[\w.]*PermissionDenied",
        r"unable to authenticate, attempted methods|No more authentication methods|Load key \"",
        r"UNPROTECTED PRIVATE KEY|AuthenticationException|Authentication failed\.$",
        r"no matching (?:host key|key exchange|cipher)|invalid format.{0,40}key|Could not SSH into the instance",
        r"unable to confirm ID of the instance|administratively prohibited|sign_and_send_pubkey: "
        r"|no mutual signature|agent refused operation|SSH key has not propagated"
        r"|OS ?Login.{0,80}(?:denied|not allowed|fail)|not a valid key file|no supported authentication methods",
        r"(?:deprecated|only supports?) .{0,40}ssh-rsa",
        remedy="the VM does not take the login key: OS Login may be forced, or the guest agent is missing from the "
        f"boot image ({SSH_TROUBLE.url})",
    ),
    _rule(
        ErrorClass.SSH,
        r"Failed to lookup instance|\b4047\b['\": ]",
        cause="IAP finds no such VM, or it does not run",
        remedy="look whether it is there and RUNNING, and in which zone: `gcloud compute instances list`",
    ),
    _rule(
        ErrorClass.SSH,
        r"start-iap-tunnel|failed to connect to backend|\b40(?:03|10|47|51|80): ['\"]|tunnel-through-iap",
        r"Code: (?:40|10)\d\d,? Reason:|(?:websocket|tunnel|relay|connection)\b.{0,80}Identity-Aware Proxy"
        r"|cloudproxy\.app",
        r"Identity-Aware Proxy.{0,120}(?:clos|fail|error|lost|abnormal|refus|timed|unreachable)",
        r"not (?:been )?(?:allocated|have|assigned) an? (?:external|public) IP|no (?:external|public) IP address",
        r"Failed to connect to port 22|destination read failed",
        r"IAP (?:tunnel|TCP).{0,80}(?:fail|error|clos|refus|timed)|(?:open|establish|creat)\w* .{0,20}IAP tunnel",
        remedy="check the firewall rule for IAP's range 35.235.240.0/20 and that the VM runs its SSH server: "
        f"{IAP.url}",
    ),
    _rule(
        ErrorClass.SSH,
        r"\b(?:on|to|VM.{0,20}) port 22\b|\bport 22 (?:\[tcp/ssh\] |\(tcp\) )?failed|\bscp: (?:Connection|Received)",
        r"\bsshd\b.{0,60}(?:not running|no hostkeys|is down|failed|inactive|refus)",
        r"SSH server .{0,40}(?:did not|does not|is not|not)\b",
        r"asyncssh[\w.]*(?:Error|Lost)|Bad owner or permissions on|Connection lost|kex_exchange_identification",
        r"ssh_exchange_identification|banner exchange|banner line|SSH protocol banner|kex_protocol_error",
        r"\bssh timed out|channel \d+: open failed|No ingress firewall rule allowing SSH found",
        r"ssh: connect to host|connect to (?:address|host) \S+ port 22\b",
        r"(?:port |:)22(?:: |,? )(?:connect: )?(?:Connection|i/o|Operation|No route|Network|timed|timeout|connection)",
        r"dial tcp \S+:22\b|Unable to connect to port 22|ssh: handshake failed",
        r"Connection (?:closed|reset) by .{0,80}(?:port \d+|remote host)|Connection to \S+ closed",
        r"client_loop: send disconnect|Timeout, server \S+ not responding|packet_write_(?:wait|poll)|ssh_packet",
        r"ssh_dispatch_run_fatal|ssh\w* exited with return code 255|\[?/usr/bin/ssh\]? exited",
        r"NoValidConnectionsError|SSHException|mux_client",
        r"SSH connection .{0,80}(?:fail|lost|clos|refus|timed|drop|broke|could not)",
        r"(?:fail|unable|could not)\w* .{0,60}(?:\bSSH\b|ssh to)|timeout - last error|error connecting to SSH",
        r"asyncssh\.\w*(?:Error|Lost)|UNREACHABLE!.{0,120}ssh|waiting for SSH|subsystem request failed",
        r"lost connection$|rsync.{0,120}connection unexpectedly closed|paramiko",
        remedy=f"look at the VM's serial console and the network's firewall, then retry the job: {SSH_TROUBLE.url}; "
        "`gcloud compute instances get-serial-port-output NAME --zone ZONE`",
    ),
)

REFUSED = (
    _rule(
        ErrorClass.NOT_FOUND,
        r"(?:(?:error|failed|while|when|cannot|could not) (?:\w+ )?(?:delet|destroy|remov)\w*|\.delete\))[^\n]{0,200}"
        r"(?:notFound|\b404\b|\bresource\b.{0,160}not found)",
        remedy="it is gone already, nothing is left to delete; `gcloud compute instances list --filter name:glgpu-` "
        "shows what lives",
    ),
    _rule(
        ErrorClass.NOT_FOUND,
        r"The referenced \w+ resource cannot be found",
        remedy="check the name in glgpu.yml and the cloud project: `glgpu doctor` looks up each",
    ),
    _rule(
        ErrorClass.NOT_FOUND,
        r"Failed to find (?:project|region|zone|service account)\b",
        r"Could not fetch resource:…(?:could not|failed to|unable to|cannot) find \w",
        r"specified external IP address .{0,60}was not found|Service account \S+ does not exist",
        remedy="check the name in glgpu.yml and the cloud project: `glgpu doctor` looks up each",
    ),
    _rule(
        ErrorClass.CONFIG,
        r"attribute (?:condition|mapping) must|attribute_?(?:condition|mapping)\b.{0,80}(?:invalid|must)",
        r"WorkloadIdentityPool\w*…(?:Error 400|INVALID_ARGUMENT)",
        remedy=f"mend the Workload Identity provider, its conditions and mappings: {ACCESS_PAGE}",
    ),
    _rule(
        ErrorClass.TRANSIENT,
        r"concurrent policy changes|retry the whole read-modify-write|operationInProgress",
        rf"(?:another|a concurrent|a previous|a pending) {_OPERATION}\b.{{0,60}}(?:running|in progress|pending"
        rf"|under ?way|ongoing)",
        rf"(?:locked|modified|changed|used|updated|held) by another {_OPERATION}\b|busy with {_OPERATION}"
        rf"|\ban operation is (?:pending|running|in progress)",
        r"operation\b.{0,60}(?:is )?(?:already|still|currently) (?:running|in progress|pending)",
        r"operation .{0,60}in progress\. .{0,40}again",
        remedy="somebody else changed the same thing at that moment: retry the job; `glgpu doctor` shows the state "
        "of things",
    ),
    _rule(
        ErrorClass.CONFIG,
        r"Invalid JSON payload|Unknown name .{0,80}Cannot find field",
        cause="",
        remedy="no setting is meant: the program that asked sends a field that this API does not know; update that "
        "program, or the Terraform provider (docs/reference/terraform.md)",
    ),
    _rule(
        ErrorClass.CONFIG,
        r"do not support live migration|on-?host-?maintenance.{0,60}(?:must|TERMINATE)",
        cause="a VM with GPUs cannot move to another host while it runs",
        remedy="set on_host_maintenance to TERMINATE in the Terraform files or the command that made the request; "
        "glgpu does so for its own VMs (docs/reference/terraform.md)",
    ),
    _rule(
        ErrorClass.CONFIG,
        r"Machine Types with more .{0,80}are not supported|disk type cannot be used by|property \[[\w/-]+\] "
        r"(?:must be|is not|has not been)(?: currently)? set|Underspecified resource|Specify the \[--[\w-]+\]",
        r"Cannot determine (?:region|zone|project)\b|\bone of (?:network|zone|region"
        r"|project)\b[^\n]{0,120} must be (?:provided|specified|set|supplied)",
        r"One of \[--[^\]]+\] must be|Scheduling must have|Cannot use default machine type"
        r"|Please specify (?:a )?location",
        r"(?:glgpu\.yml|\.tfvars|\.tf\.json)\b.{0,160}(?:invalid character|cannot unmarshal)",
        r"\[[^\]]{2,120}\] features (?:\w+ )*are not compatible|argument --[\w-]+: |number of accelerators",
        r"must only contain lowercase|(?:features?|InstanceTaxonomies) are not compatible",
        r"cannot be smaller than the image|size cannot be smaller",
        r"must specify a subnet|is in custom subnet mode|Invalid resource name",
        r"Invalid value for (?:field|argument|variable|input variable|\[)|Invalid value specified for",
        r"must be a match of regex|Preemptible (?:VM|instance)s? (?:cannot|can't|are not)|automatically restarted",
        r"Invalid (?:number|count) of (?:accelerators|GPUs)",
        r"GPUs? .{0,60}(?:cannot|can't|can only|must) be (?:attached|used)|cannot be attached to|Unknown zone",
        r"Unknown region|Invalid (?:zone|region|machine type|accelerator)",
        r"Unsupported (?:argument|block type|attribute)|Missing required argument",
        r"Invalid value for (?:input )?variable|Reference to undeclared|Argument or block definition required",
        r"Invalid provider configuration|No value for required variable|Value for undeclared variable",
        r"Invalid character(?! '.{1,8}' (?:looking|after|in))|Invalid (?:block|attribute|expression"
        r"|function argument|reference|template|index)",
        r"Inconsistent conditional|Incorrect attribute value type|Unsuitable value type",
        r"Project could not be determined|exec format error|executable file not found in",
        r"exec: \"[^\"]*\": (?:stat|permission|is a directory)|invalid mount config|unknown flag: ",
        r"flag provided but not defined|unrecognized arguments|(?:is|are) not valid for this machine",
        r"project: required field is not set",
        r"(?-i:parameterNotSpecified|badRequest|INVALID_ARGUMENT|INVALID_USAGE|invalidParameter)",
        r"Required field .{0,80}not (?:specified|set)|Request contains an invalid argument",
        r"\bError: (?:Invalid|Incorrect|Unsupported(?! Terraform Core)|Missing|Unclosed|Argument|Attempt to"
        r"|Reference to) [\w ]{3,60}…on \S+\.tf(?:\.json)? line \d+",
        r"\bError: Missing required variable|Invalid CIDR|shared-core machine types?"
        r"|\b[a-z]\d[a-z]?-\w+-\d+g? requires\b",
        r"VM_MIN_COUNT_NOT_REACHED|\bError: (?:Conflicting configuration|Extraneous label|Duplicate (?:resource"
        r"|variable"
        r"|provider|output|module|required)|Self-referential|Cycle: |Module not installed"
        r"|Inconsistent dependency lock)",
        r"does not have a provider named|no available releases match the given constraints"
        r"|doesn't match any of the checksums previously recorded",
        r"gcloud\.[\w.-]+\) Invalid choice|mapping values are not allowed|config contains unknown keys"
        r"|(?:disk|GPU|machine|zone|network|memory) (?:size|count)?.{0,20}must be at least \d+ ?[GMT]i?B\b",
        r"number of (?:GPUs|accelerators) .{0,20}not allowed",
        remedy="mend the value that the text names; docs/reference/settings.md has every key of glgpu.yml",
    ),
    _rule(
        ErrorClass.CONFLICT,
        r"Supplied fingerprint|fingerprint does not match|etag (?:mismatch|does not match)|conditionNotMet",
        r"pre-?conditions? you specified did not hold",
        _status("412"),
        remedy="somebody else changed the same thing at that moment: retry the job; `glgpu doctor` shows the state "
        "of things",
    ),
    _rule(
        ErrorClass.CONFLICT,
        rf"\b(?P<a>glgpu-[\w-]+)\b[^\n]{{0,120}}{_TAKEN}|{_TAKEN}[^\n]{{0,120}}\b(?P<b>glgpu-[\w-]+)\b",
        remedy="end the run that {a}{b} belongs to, if nobody needs it any more: `glgpu destroy`; then retry the job",
    ),
    _rule(
        ErrorClass.CONFLICT,
        r"(?:(?:being )?used|in use) by[^\n'\"]{0,40}['\"](?P<a>[\w./:-]{2,160})['\"]",
        remedy="{a} is in the way: look whose it is; detach it or remove it, if nobody needs it, or choose something "
        f"else ({ERRORS_PAGE} says how)",
    ),
    _rule(
        ErrorClass.CONFLICT,
        rf"['\"](?P<a>[\w./:-]{{2,160}})['\"][^\n]{{0,60}}?{_TAKEN}",
        remedy="{a} is there already: look whose it is; rename it or remove it, if nobody needs it, or choose another "
        f"name ({ERRORS_PAGE} says how)",
    ),
    _rule(
        ErrorClass.CONFLICT,
        _TAKEN,
        _status("409"),
        remedy=f"rename or remove what the text names, if nobody needs it, or choose another name ({ERRORS_PAGE} says "
        "how)",
    ),
)
"""Said of a request that reached the other side."""

GITLAB = (
    _rule(
        ErrorClass.NOT_FOUND,
        r"Gitlab\w*Error\W{1,3}(?:404|Object doesn't exist)",
        cause="GitLab answers, but what is asked for is not there, or may not be seen with this token",
        remedy="look at GitLab's address and the project's path, and whether GLGPU_GITLAB_TOKEN is of that project "
        f"({TOKENS.url}); `glgpu doctor` asks for both",
    ),
    _rule(
        ErrorClass.OUT_OF_TIME,
        r"execution took longer than|exceeded the maximum execution time",
        r"maximum (?:run|execution) (?:time|duration)|job (?:has )?(?:timed out|exceeded)",
        r"max_?run_?duration.{0,60}(?:reached|exceeded|expired|terminat)|script timeout|RUNNER_SCRIPT_TIMEOUT",
        r"job_execution_timeout",
        cause="the job's or the VM's time was up",
        remedy="raise machine.max_hours and the jobs' timeouts (docs/reference/inputs.md), or train for a shorter time",
    ),
    _rule(
        ErrorClass.GITLAB,
        r"413 (?:Request Entity|Payload|Content) Too Large|artifacts?.{0,120}too large|too large archive",
        cause="the artifacts are larger than GitLab takes",
        remedy="set `storage.artifact_mb` to what the instance allows (docs/reference/settings.md)",
    ),
    _rule(
        ErrorClass.GITLAB,
        r"GitLab: (?P<told>(?:You are not allowed to (?:push|create|force push)|You can only use an existing protected"
        r"|You are attempting to check in|LFS objects are missing)[^\n]{0,200})",
        cause="GitLab does not take the push: {told}",
        remedy="allow it in Settings > Repository of the project (protected branches, push rules), or set "
        "notebook.can_push: false where it is a notebook's work (docs/how-to/notebook.md)",
    ),
    _rule(
        ErrorClass.GITLAB,
        r"Gitlab\w*Error\W{1,3}(?:400|403|405|422|409)|(?:gitlab\.\w|/api/v4).{0,200}403 Forbidden",
        r"\"message\" ?: ?\"403 Forbidden|GitLab: (?:You are not allowed|Disallowed)",
        r"403 Forbidden.{0,80}(?:token|gitlab|/api/v4)|gitlab\S*(?:Error|Exception)\S*: 403",
        cause="GitLab refused a call",
        remedy=f"GLGPU_GITLAB_TOKEN needs the role Maintainer and the scope api ({TOKENS.url}); `glgpu doctor` checks "
        "it",
    ),
)

NETWORKS = (
    _rule(
        ErrorClass.TOOL_MISSING,
        r"docker\.sock: connect: permission",
        cause="this user may not use Docker's socket",
        remedy="run as a user of the group docker, and try it with `docker info`",
    ),
    _rule(
        ErrorClass.TOOL_MISSING,
        r"Unsupported Terraform Core version|does not support Terraform version",
        cause="this Terraform is not the one that the files ask for",
        remedy="use a version that the text allows, 1.5 or newer for glgpu's own files: `terraform version` tells "
        "which one this is",
    ),
    _rule(
        ErrorClass.TOOL_MISSING,
        r"\b(?P<a>terraform|tofu|gcloud|docker|git|git-lfs|ssh|gsutil|glgpu)\b:? (?:command )?not found",
        r"Cannot connect to the (?P<b>Docker) daemon|(?P<c>docker)\.sock: connect: no such",
        r"No such file or directory: '(?P<d>terraform|tofu|gcloud|docker|git|ssh)'",
        cause="a program is missing here, or does not run: {a}{b}{c}{d}",
        remedy="use the job image, or install it; Terraform from 1.5 on: `terraform version`, Docker: `docker info`",
    ),
    _rule(
        ErrorClass.TRANSIENT,
        r"could not query provider registry.*\b50[0234]|checksums for provider: 50[0234]",
        r"GitLab is (?:taking too much time|not responding)|too many 50[0-4] error responses",
        r"giving up after \d+ attempt.{0,60}50[0-4]|HTTP remote state internal server error",
        remedy="the other side failed and may work again: retry the job; `glgpu doctor` shows whether it does",
    ),
    _rule(
        ErrorClass.NETWORK,
        r"connection (?:was )?(?:refused|reset|aborted|timed out|broken|closed|error|lost|terminated|failure|died)",
        r"connect(?:ion)?:? ?(?:ECONN|timeout)|no route to host|Name or service not known|no such host",
        r"nodename nor servname|(?:Temporary failure|failure) in name|name (?:does not|could not) resol",
        r"could(?: not|n't) resolve|Temporary failure resolving|unable to resolve|DNS (?:resolution|lookup|error)",
        r"NameResolutionError|NewConnectionError|server misbehaving|getaddrinfo",
        r"\bE(?:CONNREFUSED|CONNRESET|TIMEDOUT|HOSTUNREACH|NOTFOUND|AI_AGAIN|NETUNREACH|PIPE)\b",
        r"network (?:is )?unreachable|host (?:is )?unreachable|Host is down",
        r"(?:connect\w{0,9}|connection|read|write|request|operation|handshake|socket|lookup|dial\w{0,9}|transfer"
        r"|download|fetch\w{0,9}|host|http\S{0,400}|url|server|GET|POST) .{0,80}?(?:timed[ -]out|time-out)\b",
        r"connect(?:ion)? ?timeout(?! ?[=:]|\w)|\bi/o timeout",
        r"timeout (?:awaiting|exceeded while|was reached|expired|while (?:connecting|reading))",
        r"timed out (?:after \d|\(|while (?:connecting|reading|fetching|downloading))",
        r"(?:Read|Connect|Connection|Socket|Pool)Timeout(?:Error)?\b|TimeoutError: (?:\[Errno|timed out|The read)",
        r"\btimed out\.?['\")]|context deadline exceeded|Client\.Timeout|request canceled while",
        r"^(?:\w+: )?(?:curl|wget)…timed out|Errno 110|DEADLINE_EXCEEDED|proxyconnect|Proxy ?Error",
        r"Tunnel connection failed|HTTP code 407|Proxy Authentication Required|(?:from|through|via) proxy",
        r"TLS handshake|SSL ?handshake|handshake (?:failure|failed|timeout)",
        r"certificate[ _-](?:verif\w+|has expired|is not (?:yet )?valid|signed by|chain|required|problem|relies on)",
        r"x509: |SSL(?:Error|EOFError|CertVerificationError)\b|SSL certificate|SSL_ERROR|\bssl\.c:|\btls: ",
        r"SSL routines|CERTIFICATE_VERIFY_FAILED|self[- ]signed certificate|unable to get (?:local )?issuer",
        r"wrong version number|EOF occurred in violation|bad record mac",
        r"Max retries exceeded|Connection aborted|RemoteDisconnected|Remote end closed|ProtocolError",
        r"IncompleteRead|ChunkedEncodingError|unexpected EOF(?! while (?:parsing|looking|scanning))|: EOF$",
        r"early EOF|Failed to establish a new connection|failed to connect(?: to)?\b|cannot (?:connect|reach)",
        r"could(?: not|n't) connect|unable to (?:connect|reach)|unable to access (?![\s\S]{0,300}error: [45]\d\d)",
        r"failed to connect to all addresses|cannot assign requested address",
        r"curl: \((?:5|6|7|16|18|28|35|52|55|56|60|77|92)\)|http2: (?:client connection|timeout|server sent)",
        r"stream (?:error|was reset)|peer closed|Software caused connection abort|broken pipe|URLError",
        r"(?:Connection|ConnectionReset|ConnectionRefused|ConnectionAborted|BrokenPipe)Error\b",
        r"ClientConnectorError|ServerDisconnectedError|Network error|network(?:ing)? (?:failure|problem|timeout)",
        r"the remote end hung up|RPC failed|TransportError|dial (?:tcp|udp)\b|Recv failure|Send failure",
        r"Unable to find the server at|ServerNotFoundError|service is unreachable|Registry service unreachable",
        r"remote name could not|unknown host\b|\bSSL: [A-Z_]{8,}|Unable to establish (?:a |an )?(?:SSL|TLS|secure)",
        r"unable to (?:open (?:a )?connection|contact the server)|server closed (?:the )?connection\b(?! string)"
        r"|\bhost not found:"
        r"|no response from (?:the )?server",
        r"\bbad address '|Network is down|No internet connection|net::ERR_|ERR_(?:CONNECTION|NAME|INTERNET|TUNNEL)_\w+",
        r"unexpected disconnect while reading|host could not be resolved|stream closed before"
        r"|connection attempts? failed",
        r"Could not reach|not reachable|unreachable network|Socket (?:closed|error)",
        remedy="check names, proxies, firewalls and certificates on the way to the other side, then retry the job; "
        f"{DOCTOR}",
    ),
    _rule(
        ErrorClass.TRANSIENT,
        r"Backend ?Error|backendError|(?<!nccl)internalError|operation was aborted",
        r"(?-i:INTERNAL_ERROR|\bUNAVAILABLE\b|\bABORTED\b)",
        r"(?:code = |StatusCode\.|(?<!ncclInternal)error: )(?:Unavailable|Internal|Aborted)\b",
        r"internal (?:server )?error\b(?!, NCCL)|Service ?Unavailable|Bad ?Gateway|Gateway ?Time-?out",
        r"RESOURCE_NOT_READY|resourceNotReady|is not ready\b|operationInProgress"
        r"|OPERATION_IN_PROGRESS",
        r"service is (?:currently |temporarily )?unavailable|temporarily (?:unavailable|unable|overloaded)",
        r"temporary (?:error|failure|problem)|(?:please )?(?:try|retry) again (?:later|in|after|shortly|soon)",
        r"please (?:try|retry) (?:again|the)",
        r"(?:concurrent|simultaneous) (?:policy )?(?:changes|modification|updates)|503 Service",
        r"HTTP (?:response code: )?50[0234]|server (?:error|is overloaded|is busy)|(?:is|was) overloaded",
        r"code_?: ?(?:13|14)\b|(?-i:\bINTERNAL\b: )|unknown: Internal",
        _status("50[0234]"),
        r"upstream connect error|no healthy upstream",
        r"^50[0234] (?:Server|Service|Bad|Gateway|Internal)",
        remedy="the other side failed and may work again: retry the job; `glgpu doctor` shows whether it does",
    ),
)

REMAINDER = (
    _rule(
        ErrorClass.STATE_LOCK,
        r"Error (?:acquiring|locking)(?: the)? state|(?:unable|failed|cannot|could not) .{0,40}state lock",
        cause="Terraform's state of this run cannot be locked",
        remedy="`glgpu destroy` breaks a lock that was left behind; or set `state: local`",
    ),
    _rule(
        ErrorClass.STATE_ACCESS,
        rf"{_STATE}|Error(?:: Failed to)? (?:writ|upload|persist)\w* state",
        r"Backend (?:initialization|configuration) (?:required|changed)|unsupported checkable object kind",
        r"state data in \S+ does not have",
        remedy="look at the state in GitLab (Operate > Terraform states, docs/reference/terraform.md), or set "
        "`state: local`",
    ),
    _rule(
        ErrorClass.PERMISSION,
        r"(?-i:\bPERMISSION_DENIED\b|\bIAM_PERMISSION_DENIED\b)",
        r"does not have (?:the )?(?:sufficient |required |enough |necessary )?permissions?\b",
        r"(?:caller|client|user|principal|account|service account) .{0,80}(?:not (?:authorized|have)|lacks?"
        r"|is missing|denied)",
        r"Policy update access denied|insufficient permissions?|not authorized (?:to|for)",
        r"(?:access|authorization) (?:was |is )?(?:denied|forbidden|unauthorized)",
        r"googleapis?\.com…(?:Forbidden|\b403\b)|Permission denied on resource|does not have \w+\.\w+\.\w+",
        r"Missing or insufficient permissions|Not authorized|(?-i:\bforbidden\b)",
        r"\bis not authorized\b|SERVICE_CONFIG_NOT_FOUND_OR_PERMISSION_DENIED",
        r"needs? the .{0,60}\b(?:IAM )?role\b",
        r"(?:google|gcloud|GCP|HttpError|api_core\.exceptions)\S*[: ].{0,40}\b403\b",
        rf"{_status('403')}|\b403[ :]+(?:Client Error|Forbidden)",
        remedy=f"grant the missing role to the account that glgpu uses ({ACCESS_PAGE}); `glgpu doctor` names what is "
        "missing",
    ),
    _rule(
        ErrorClass.AUTH,
        r"401 (?:Client Error|Unauthorized)|\bUnauthorized\b",
        _status("401"),
        cause="the other side does not accept the credentials, or was given none",
        remedy=f"renew the token or key that is meant; Google's: {ACCESS_PAGE}, GitLab's: {TOKENS.url}",
    ),
    _rule(
        ErrorClass.DRIVER,
        r"Could not load dynamic library 'lib(?:cuda|cublas|cufft|curand|cusolver|cusparse|cudnn|cudart)",
        r"Cannot dlopen some GPU libraries|failed call to cuInit",
        r"lib(?:cudart|cublas|cudnn|cufft|curand|cusolver|cusparse|nccl|nvrtc)\S*\.so\S*: (?:cannot open|undefined)",
        r"Could not (?:find|locate|load) (?:library )?\W?lib(?:cu|nv)\w+",
        remedy=f"set train.image to one with the CUDA libraries that the framework wants ({CUDA.url})",
    ),
    _rule(
        ErrorClass.NOT_FOUND,
        r"(?-i:\bnotFound\b|\bNOT_FOUND\b|RESOURCE_NOT_FOUND|NoSuchBucket|NoSuchKey)|\bNo such object: ",
        r"\b(?:resource|project|network|subnetwork|bucket|account|instance|zone|region"
        r"|entity)s?\b.{0,120}(?:was not found|not found|does not exist|doesn't exist|could not be found"
        r"|cannot be found)",
        r"404 (?:Not Found|Client Error|\w+ Not Found)|Requested entity was not found",
        r"Unknown (?:project|service account|user)|Gaia id not found|No default subnetwork|no default network",
        r"could not find (?:the )?(?:network|subnetwork|project|instance|bucket) ['\"\[]|The specified bucket",
        r"may be incorrect or|RepositoryNotFoundError|EntryNotFoundError",
        r"VPC_NOT_FOUND|SUBNET_NOT_FOUND\w*",
        _status("404"),
        remedy="check the name in glgpu.yml and the cloud project: `glgpu doctor` looks up each",
    ),
    _rule(
        ErrorClass.CONFIG,
        r"(?:google|gcloud|HttpError|compute)\S* .{0,80}\b400\b|(?-i:FAILED_PRECONDITION|UNSUPPORTED_OPERATION)",
        r"googleapi: Error 400",
        remedy="mend the value that the text names in glgpu.yml: docs/reference/settings.md has every key",
    ),
)

RULES: tuple[Rule, ...] = (
    *GPU_AND_MEMORY,
    *DISK,
    *CAPACITY,
    *LIMITS,
    *PROJECT,
    *STATE,
    *IMAGES_DENIED,
    *RIGHTS,
    *CREDENTIALS,
    *PLACES,
    *REPOSITORIES,
    *WAY_TO_THE_VM,
    *REFUSED,
    *GITLAB,
    *NETWORKS,
    *REMAINDER,
)
"""In the order in which they are tried."""
