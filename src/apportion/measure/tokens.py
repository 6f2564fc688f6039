def most_input_tokens(body: bytes) -> int | None:
    return len(body)
def estimate_tokens(text: str) -> int:
    return len(text)//4
