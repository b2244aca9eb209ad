"""The code that nvcc generates for csrc/cuda, executed by a simulator of PTX on launches that the emulation records.

MHICL_PTXSIM=…/ptxsim.py PYTHONPATH=.:tests python -m ptx
"""
