# syntax=docker/dockerfile:1
# Two images of the same server: `docker build --target cpu .` and `--target gpu .`.
# Everything that is installed is locked, with hashes: requirements/*.hashes.txt (make hashes).
# rouge-score has no wheel: setuptools, as pip finds it, builds one of its hashed source.
# docs/install.md says what of this was run.

FROM python:3.11-slim-bookworm AS python
ENV PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1

FROM python AS build
RUN python -m venv /opt/loraplex
ENV PATH=/opt/loraplex/bin:$PATH PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src

FROM build AS build-cpu
# PyTorch's CPU build isn't on the package index; pytorch.org, "Get started", names this one.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
COPY requirements/cpu.hashes.txt requirements/
RUN pip install --require-hashes --no-deps --only-binary :all: --no-binary rouge-score \
    --extra-index-url "$TORCH_INDEX" -r requirements/cpu.hashes.txt
COPY . .
RUN pip install --no-deps --no-build-isolation .

FROM build AS build-gpu
COPY requirements/gpu.hashes.txt requirements/
RUN pip install --require-hashes --no-deps --only-binary :all: --no-binary rouge-score \
    -r requirements/gpu.hashes.txt
COPY . .
RUN pip install --no-deps --no-build-isolation .

FROM python AS server
# gcc compiles the CPU's LoRA kernel at start, and Triton's on a GPU.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev libgomp1 libnuma1 \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 10001 --home-dir /tmp --no-create-home loraplex \
    && install --directory --owner loraplex --group loraplex /data
ENV PATH=/opt/loraplex/bin:$PATH \
    LORAPLEX_DATA_DIR=/data \
    LORAPLEX_HOST=0.0.0.0 \
    XDG_CACHE_HOME=/data/cache \
    HF_HOME=/data/cache/huggingface
USER 10001:10001
WORKDIR /data
VOLUME /data
EXPOSE 8000
STOPSIGNAL SIGTERM
# The engine starts in half a minute and may fetch a base first.
HEALTHCHECK --interval=10s --timeout=10s --start-period=15m --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as r; r.urlopen('http://127.0.0.1:' + os.environ.get('LORAPLEX_PORT', '8000') + '/livez', timeout=9)"]
ENTRYPOINT ["loraplex"]
CMD ["serve"]

FROM server AS cpu
COPY --from=build-cpu /opt/loraplex /opt/loraplex

FROM server AS gpu
COPY --from=build-gpu /opt/loraplex /opt/loraplex
