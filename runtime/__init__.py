"""On the device: file format, front ends and engines; numpy only at import."""
