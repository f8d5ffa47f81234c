# One image for web tier, agent and Flower; the command selects one: web, agent, flower, up.
#
#     docker build -t llmis .                    CPU; the last target
#     docker build -t llmis:gpu --target gpu .   NVIDIA GPUs, with ExLlamaV2
#
# Only /data and /tmp are written: run it with --read-only --tmpfs /tmp.

ARG PYTHON_IMAGE=python:3.11-slim-bookworm
# The CUDA that torch of requirements-gpu.txt is built for.
ARG CUDA_VERSION=13.0.2

# -- packages, in a virtual environment that is copied ---------------------------------------------

FROM ${PYTHON_IMAGE} AS build
# requirements-demo.txt brings the demo model of llmis.toml (250 MB); empty = without it.
ARG DEMO_REQUIREMENTS=requirements-demo.txt
WORKDIR /opt/llmis
RUN python -m venv .venv
COPY requirements.txt requirements-demo.txt constraints.txt ./
RUN .venv/bin/pip install --no-cache-dir -r requirements.txt ${DEMO_REQUIREMENTS:+-r ${DEMO_REQUIREMENTS}}
COPY . .
RUN .venv/bin/pip install --no-cache-dir --no-deps --editable . \
    && .venv/bin/python -m compileall -q app cli shared worker celeryconfig.py \
    && chmod -R a+rX .

FROM nvidia/cuda:${CUDA_VERSION}-devel-ubuntu24.04 AS gpu-build
# Compute capabilities that ExLlamaV2's extension is compiled for.
ARG TORCH_CUDA_ARCH_LIST="8.0 8.6 8.9 9.0"
ARG MAX_JOBS=4
WORKDIR /opt/llmis
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/* \
    && python3 -m venv .venv
COPY requirements.txt requirements-gpu.txt constraints.txt ./
RUN .venv/bin/pip install --no-cache-dir -r requirements-gpu.txt
COPY . .
RUN TORCH_CUDA_ARCH_LIST="${TORCH_CUDA_ARCH_LIST}" MAX_JOBS="${MAX_JOBS}" \
    .venv/bin/python tools/gpu/build_extension.py exl2-build \
    && .venv/bin/pip install --no-cache-dir --no-deps --editable . \
    && .venv/bin/python -m compileall -q app cli shared worker celeryconfig.py \
    && chmod -R a+rX .

# -- runtime ---------------------------------------------------------------------------------------

FROM nvidia/cuda:${CUDA_VERSION}-runtime-ubuntu24.04 AS gpu
# Triton compiles its launchers at run time: needs gcc and Python's headers.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends gcc libc6-dev libgomp1 python3-dev tini \
    && rm -rf /var/lib/apt/lists/* \
    && groupadd --gid 10001 llmis \
    && useradd --uid 10001 --gid llmis --home-dir /data --no-create-home llmis \
    && install -d -o llmis -g llmis -m 0700 /data
COPY --from=gpu-build /opt/llmis /opt/llmis
ENV PATH=/opt/llmis/.venv/bin:${PATH} \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    LLMIS_CONFIG=/opt/llmis/llmis.toml \
    LLMIS_DATA_DIR=/data \
    TRITON_CACHE_DIR=/data/triton \
    HOME=/tmp
WORKDIR /opt/llmis
USER 10001:10001
VOLUME /data
HEALTHCHECK --interval=15s --timeout=10s --start-period=60s --retries=3 \
    CMD ["llmis", "check"]
ENTRYPOINT ["tini", "--", "llmis"]
CMD ["agent"]

FROM ${PYTHON_IMAGE} AS cpu
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends libgomp1 tini \
    && rm -rf /var/lib/apt/lists/* \
    && groupadd --gid 10001 llmis \
    && useradd --uid 10001 --gid llmis --home-dir /data --no-create-home llmis \
    && install -d -o llmis -g llmis -m 0700 /data
COPY --from=build /opt/llmis /opt/llmis
ENV PATH=/opt/llmis/.venv/bin:${PATH} \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    LLMIS_CONFIG=/opt/llmis/llmis.toml \
    LLMIS_DATA_DIR=/data \
    HOME=/tmp
WORKDIR /opt/llmis
USER 10001:10001
VOLUME /data
EXPOSE 8000 5555
HEALTHCHECK --interval=15s --timeout=10s --start-period=60s --retries=3 \
    CMD ["llmis", "check"]
ENTRYPOINT ["tini", "--", "llmis"]
CMD ["up"]
