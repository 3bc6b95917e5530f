"""Autocast to bfloat16: the range of float32, 8 bits of precision; weights stay float32."""

KIND = "rounded"
WORK = {"precision": "bf16"}
