"""Whether a model's answer to a request will be right."""
