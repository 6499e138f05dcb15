"""An empty stand-in for torchaudio, put into the CPU environment by the Makefile.

LLaMA-Factory 0.9.5 imports torchaudio when it loads, for audio models alone. PyPI's torchaudio is a CUDA
build that does not load beside a CPU build of torch. Text needs nothing of it: any use of it ends in an
AttributeError that names it.
"""
