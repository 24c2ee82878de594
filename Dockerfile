# docker build -t glmtune . && docker run -p 8000:8000 -e GLMTUNE_API_KEY=my-long-secret glmtune
# Serves the embedded base on the CPU. For a GPU, whose torch is the one on PyPI, and with bitsandbytes:
# docker build -t glmtune --build-arg TORCH_INDEX=https://pypi.org/simple --build-arg EXTRAS=serve,quant .
# docker run --gpus all ...
FROM python:3.12-slim

ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ARG EXTRAS=serve

# A server needs no rights, and no home but its own.
RUN useradd --create-home glmtune
WORKDIR /opt/glmtune
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY src ./src
RUN pip install --no-cache-dir --extra-index-url "$TORCH_INDEX" --constraint constraints.txt ".[$EXTRAS]"

USER glmtune
ENV GLMTUNE_LANG=en PYTHONUNBUFFERED=1
EXPOSE 8000
HEALTHCHECK --start-period=60s CMD ["python", "-c", \
    "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health', timeout=5)"]
ENTRYPOINT ["glmtune"]
CMD ["serve", "--host", "0.0.0.0"]
