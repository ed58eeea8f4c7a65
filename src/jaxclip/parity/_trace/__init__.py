"""Recordings of training runs: a folder of safetensors files and JSON."""
