# An image for `torchx run -s kubernetes` and for Slurm with containers: docker build -t registry.example.org/team/deit_fast .
# The CUDA libraries come with torch and DALI; the node has to have the driver, and its container runtime.
FROM python:3.11-slim
ARG DALI=cuda12

# Triton compiles its launcher where it runs, and the image path of CPUs is C.
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*

WORKDIR /app
COPY setup.py setup.cfg pyproject.toml README.md LICENSE ./
COPY deit_fast deit_fast
COPY components components
COPY pipelines pipelines
COPY benchmarks benchmarks
RUN pip install --no-cache-dir --disable-pip-version-check ".[$DALI,demo,export,cloud,wandb,mlflow]"

# Components bring their own command; without one, the recipes.
CMD ["deit-fast", "show"]
