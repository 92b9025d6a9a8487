"""`python -m sec_grpo`, for launchers such as torchrun and accelerate."""

from sec_grpo.cli import main

if __name__ == "__main__":
    main()
