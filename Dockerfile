# ribonanzamamba with its weights, on a CPU or a GPU:
#   docker build -t ribonanzamamba .                             CPU
#   docker build -t ribonanzamamba --build-arg DEVICE=cuda .     NVIDIA GPU
FROM python:3.12-slim AS build
# cpu or cuda
ARG DEVICE=cpu
WORKDIR /source
COPY pyproject.toml README.md LICENSE constraints.txt ./
COPY src ./src
# PyPI's wheel of PyTorch for Linux brings CUDA; the one for CPUs, a tenth of its size, lies with PyTorch
RUN case "$DEVICE" in \
        cpu) index=https://download.pytorch.org/whl/cpu ;; \
        cuda) index=https://pypi.org/simple ;; \
        *) echo "DEVICE: expected cpu or cuda, got $DEVICE" >&2; exit 1 ;; \
    esac \
    && python -m venv /opt/ribonanzamamba \
    && /opt/ribonanzamamba/bin/pip install --no-cache-dir --index-url "$index" -c constraints.txt torch \
    && /opt/ribonanzamamba/bin/pip install --no-cache-dir -c constraints.txt ".[vienna,plots,templates]"

FROM python:3.12-slim
COPY --from=build /opt/ribonanzamamba /opt/ribonanzamamba
RUN useradd --create-home --uid 1000 ribonanzamamba \
    && mkdir /data \
    && chown ribonanzamamba:ribonanzamamba /data
USER 1000:1000
ENV PATH=/opt/ribonanzamamba/bin:$PATH \
    MPLCONFIGDIR=/tmp/matplotlib
WORKDIR /data
VOLUME /data
ENTRYPOINT ["ribonanzamamba"]
CMD ["--help"]
