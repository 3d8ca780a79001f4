# The driver SDK: what drivers' images stand on. The gateway builds it from its own installation (docs/docker.md).
ARG BASE_IMAGE=python:3.13-slim
FROM ${BASE_IMAGE}

# An environment of its own, that sees the system's packages: a driver may take some from the distribution.
RUN python3 -m venv --system-site-packages /opt/onecontainer
ENV PATH=/opt/onecontainer/bin:$PATH HOME=/tmp PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
COPY requirements.txt constraints.txt /opt/onecontainer/
RUN pip install --quiet -r /opt/onecontainer/requirements.txt -c /opt/onecontainer/constraints.txt
COPY *.whl /opt/onecontainer/wheels/
RUN pip install --quiet --no-deps --no-index /opt/onecontainer/wheels/*.whl

# Where a driver that is not the gateway's to start keeps its state; a volume that is mounted here is the driver's.
RUN install -d -o 65532 -g 65532 -m 0700 /var/lib/onecontainer
WORKDIR /opt/driver
HEALTHCHECK --interval=30s --timeout=10s --start-period=60s CMD ["python3", "-m", "onecontainer.rpc.health"]
ENTRYPOINT ["python3", "-m", "onecontainer.driver", "--driver-dir", "/opt/driver"]
