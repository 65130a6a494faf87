# The other environment: a server of vLLM that draws responses (`generation.urls`), on a GPU.
#     docker build --file deploy/engine.Dockerfile --tag infalign-engine deploy
#     docker run --gpus all --publish 127.0.0.1:8000:8000 --volume "$PWD:$PWD:ro" infalign-engine \
#         "$PWD/results/sft/model" --served-model-name sft
FROM vllm/vllm-openai:v0.33.0

# What the model's own file would say of sampling is left out: every request says all of it.
ENTRYPOINT ["vllm", "serve", "--host", "0.0.0.0", "--generation-config", "vllm"]
