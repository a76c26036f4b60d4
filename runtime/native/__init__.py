"""The native engine: graphs computed in integers, straight from the codebooks by table look-up."""
