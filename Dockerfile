# docker build -t ilf .                                        the CPU build of torch
# docker build -t ilf --build-arg TORCH_BACKEND=cu130 .        a CUDA build, for: docker run --gpus all ilf
# docker run --rm -v "$PWD/work:/work" ilf                     a run; results and the store stay in ./work
#
# Programs that a model wrote run in the sandbox. Docker's default profile refuses namespaces, so Landlock and seccomp
# isolate them; `run.log` reports what is in force. executor.isolation=require refuses to run if this is not enough.
FROM python:3.12-slim

# The build of torch, by uv's name for it: cpu, cu126, cu130 and so on.
ARG TORCH_BACKEND=cpu

WORKDIR /opt/ilf
COPY requirements.txt ./
RUN pip install --no-cache-dir uv \
    && uv pip install --system --no-cache --torch-backend "${TORCH_BACKEND}" -r requirements.txt
COPY pyproject.toml README.md LICENSE ./
COPY conf conf
COPY src src
RUN pip install --no-cache-dir --no-deps . && useradd --create-home ilf && install -d -o ilf /work

# Do not run as root: the sandbox isolates programs better as an ordinary user.
USER ilf
WORKDIR /work
ENTRYPOINT ["ilf"]
