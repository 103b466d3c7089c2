"""`python -m hmc_onnx` is `hmc-onnx`."""

from hmc_onnx.cli import main

if __name__ == "__main__":
    main()
