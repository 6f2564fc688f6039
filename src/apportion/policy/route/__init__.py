"""Which of the offered options (a model, an endpoint) serves this request."""
