# Build:   docker build -t cxr-fusion .
# Run:     docker run --rm -it --gpus all --ipc=host --user "$(id -u):$(id -g)" -v /data:/data:ro -v "$PWD/runs:/app/runs" \
#              cxr-fusion accelerate launch extract.py --config extract/configs/cxr_lt_2023.yaml
# Look:    docker run --rm --gpus all --ipc=host cxr-fusion          # the doctor's report on this machine
#
# --ipc=host, because loader workers hand images over in shared memory, of which a container has 64 MB otherwise. The
# wheels bring CUDA's libraries along: the host needs NVIDIA's driver and container toolkit, nothing else; without
# --gpus all everything runs on the CPU. Where ids of DICOM files are to become the same pseudonyms in every run, keep
# their key: -v "$HOME/.config/cxr-fusion:/home/cxr/.config/cxr-fusion".
FROM python:3.12-slim

ENV PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 HOME=/home/cxr
WORKDIR /app

# What pyproject.toml asks for, in a layer of its own: a change of the code does not install torch again.
COPY pyproject.toml ./
RUN python -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['dependencies'], sep='\n')" \
        > /tmp/dependencies.txt && pip install -r /tmp/dependencies.txt

COPY . .
RUN pip install --no-deps -e . \
    && useradd --uid 1000 --home-dir /home/cxr cxr \
    && mkdir -p /home/cxr/.config runs && chown -R cxr /home/cxr runs && chmod -R a+rwX /home/cxr runs

USER cxr
CMD ["python", "scripts/doctor.py"]
