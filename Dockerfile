# SimpleSeg-RL in a container, for a CPU or a CUDA device:
#
#   docker build -t simpleseg .
#   docker build -t simpleseg:cuda --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu130 .
#   docker run --rm -v "$PWD/runs:/home/learner/runs" simpleseg gspo
#   docker run --rm --gpus all -v "$PWD:/home/learner" simpleseg:cuda gspo --policy Qwen/Qwen2.5-VL-3B-Instruct --lora-rank 16
FROM python:3.12-slim

ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ENV PIP_NO_CACHE_DIR=1 PYTHONUNBUFFERED=1

WORKDIR /opt/simpleseg
COPY pyproject.toml README.md LICENSE constraints.txt ./
COPY seg_env seg_env
COPY rewards rewards
COPY agents agents
COPY experiments experiments
RUN pip install --extra-index-url "$TORCH_INDEX" -c constraints.txt . \
    && useradd --create-home learner

USER learner
WORKDIR /home/learner
ENTRYPOINT ["simpleseg"]
CMD ["--help"]
