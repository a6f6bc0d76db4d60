# Train in a container, on GPUs or on the CPU. From the project's folder:
#
#   docker build --tag versatune .
#   docker run --rm --gpus all --ipc=host -v "$PWD:/work" -v versatune_cache:/home/versatune versatune train recipes/quickstart.yaml
#
# Without a GPU: --build-arg BASE=ubuntu:24.04 --build-arg TORCH=cpu, and run it without --gpus all.
#
# The kernels are compiled at the first start, for the GPUs and the CPU that are there then; the volume keeps them.

# An image of Debian or Ubuntu with Python >= 3.10. For GPUs one with nvcc, of the CUDA version that torch is built for.
ARG BASE=nvidia/cuda:13.0.0-devel-ubuntu24.04
FROM ${BASE}

# cuda or cpu: which torch is installed.
ARG TORCH=cuda
ARG TORCH_VERSION=2.13.0
ARG CPU_INDEX=https://download.pytorch.org/whl/cpu
# Extras of the package (setup.py); the mpirun launcher needs mpi.
ARG EXTRAS=lora,8bit,fused,gguf
# The user's number; with that of `id -u` the files of runs are yours.
ARG UID=1000

RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3 python3-venv python3-dev g++ git ca-certificates \
    && rm -rf /var/lib/apt/lists/*

# An own layer: a change of the project does not install torch again.
RUN python3 -m venv /opt/venv \
    && case "$TORCH" in \
         cuda) /opt/venv/bin/pip install --no-cache-dir "torch==$TORCH_VERSION" ;; \
         cpu) /opt/venv/bin/pip install --no-cache-dir --index-url "$CPU_INDEX" "torch==$TORCH_VERSION" ;; \
         *) echo "TORCH=$TORCH: expected cuda or cpu" >&2; exit 2 ;; \
       esac

COPY setup.py pyproject.toml README.md LICENSE /opt/versatune/
COPY versatune_ds /opt/versatune/versatune_ds
COPY launcher /opt/versatune/launcher
COPY slurm /opt/versatune/slurm
COPY ds_configs /opt/versatune/ds_configs
COPY recipes /opt/versatune/recipes
RUN /opt/venv/bin/pip install --no-cache-dir "/opt/versatune[$EXTRAS]" && rm -rf /opt/versatune

RUN useradd --create-home --non-unique --uid "$UID" versatune && mkdir /work && chown versatune /work
USER versatune
WORKDIR /work
ENV PATH=/opt/venv/bin:$PATH

ENTRYPOINT ["versatune"]
CMD ["--help"]
