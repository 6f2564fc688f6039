"""The proxy against nginx, vllm-router and LiteLLM, one core each. See benchmarks/README.md."""
