# A driver in Python, for a folder that has no Dockerfile of its own.
ARG BASE_IMAGE
FROM ${BASE_IMAGE}
COPY . .
RUN python3 -m onecontainer.driver.install . && python3 -m compileall -q .
USER 65532:65532
