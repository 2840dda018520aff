# Vecmill with all it needs: the image of every node of a Ray cluster (configs/rayjob.yaml), or of one machine:
#
#   docker build -t vecmill:0.1.0 .
#   docker run --rm --shm-size=4g -v "$PWD/data:/home/vecmill/data" vecmill:0.1.0 embed configs/local.yaml
#   docker run --rm --shm-size=4g --gpus all -e AWS_ACCESS_KEY_ID -e AWS_SECRET_ACCESS_KEY vecmill:0.1.0 embed configs/gpu.yaml
#
# --shm-size: Ray keeps splits in flight in /dev/shm, which Docker makes 64 MB unless told.
#
# CUDA: on x86-64 the torch that PyPI has brings its own CUDA libraries, so the base image needs none. The host needs
# NVIDIA's driver (new enough for what `python -c "import torch; print(torch.version.cuda)"` says) and its container
# toolkit. The packages take 5.5 GB with CUDA; without, an image is some GB smaller: build it with
#   --build-arg PIP_EXTRA_INDEX_URL=<PyTorch's index of CPU wheels>

FROM python:3.12-slim AS builder

# Read by pip; empty means PyPI alone.
ARG PIP_EXTRA_INDEX_URL=""

# A venv rather than the system's packages: one folder to copy, and nothing of pip's own left behind.
RUN python -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH

WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
# The dependencies in a layer of their own, made before the code is copied: a changed line of code does not install
# torch again. Without folders to find, this installs an empty vecmill and all that it needs.
RUN pip install --no-cache-dir .
COPY pipeline pipeline
COPY jobs jobs
RUN pip install --no-cache-dir --no-deps --force-reinstall . \
    # Once, here: the user below may not write into the venv, and would compile everything again at each start.
    && python -m compileall -q /opt/venv/lib


FROM python:3.12-slim

# wget: what KubeRay's probes call in the pod. Not pinned: Debian keeps only the latest version of a package.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends wget \
    && rm -rf /var/lib/apt/lists/*

# Not root: the job reads documents that others wrote. Group 0, and the home writable by it, because some clusters run
# images under a user id of their own choice, with that group. The home must be writable: Ray keeps its token there,
# Vecmill the models it fetches.
# hadolint ignore=SC2016
RUN useradd --uid 1000 --gid 0 --create-home vecmill \
    && chmod g=u /home/vecmill \
    # A login shell, which older KubeRay starts Ray with, sets PATH anew and would not find the venv.
    && echo 'export PATH=/opt/venv/bin:$PATH' > /etc/profile.d/vecmill.sh
COPY --from=builder /opt/venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH \
    HOME=/home/vecmill \
    # Log lines reach `kubectl logs` when they are written, not when a buffer is full.
    PYTHONUNBUFFERED=1 \
    # What the container toolkit mounts of the driver: to compute, and nvidia-smi. Ignored where there is no GPU.
    NVIDIA_DRIVER_CAPABILITIES=compute,utility

USER 1000
WORKDIR /home/vecmill
COPY configs configs

ENTRYPOINT ["vecmill"]
CMD ["--help"]
