"""The encoder, decoder and heads, and every way weights come in and go out."""
