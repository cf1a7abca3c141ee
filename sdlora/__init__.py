"""sdlora: LoRA training for Stable Diffusion. The public names load on first use (PEP 562)."""
