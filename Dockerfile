# gen_jax for a CPU, a GPU or a TPU VM. Not built where it was written: no Docker there.
#
#   docker build --tag gen_jax .                                  # CPU
#   docker build --tag gen_jax --build-arg EXTRAS=all,gpu .       # run with --gpus all
#   docker build --tag gen_jax --build-arg EXTRAS=all,tpu .       # run with --privileged
#   docker run --rm --volume $PWD/runs:/app/runs gen_jax train --config lm/pydoc --workdir runs/text
FROM python:3.12-slim
ARG EXTRAS=all
COPY pyproject.toml README.md LICENSE CHANGELOG.md /src/
COPY configs /src/configs
COPY gen_jax /src/gen_jax
RUN pip install --no-cache-dir --no-compile "/src[$EXTRAS]" && rm -rf /src \
  && useradd --create-home --uid 1000 user && mkdir /app && chown user /app
USER user
WORKDIR /app
ENTRYPOINT ["gen-jax"]
CMD ["--help"]
