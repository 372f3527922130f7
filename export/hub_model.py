"""The student of a package as a model of huggingface_hub: `from_pretrained`, `save_pretrained`, `push_to_hub`.

    HubStudent.from_pretrained("org/name")            # or the folder of a package

Needs torch. The files are those of a package: `config.json` rebuilds the network, `model.safetensors` fills it. One package of a
collection: `HubStudent.from_pretrained(kdzoo.load("org/name", branch=3).folder)`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from huggingface_hub import PyTorchModelHubMixin, hf_hub_download
from jaxtyping import Float
from torch import Tensor, nn

from ..errors import IntegrityError
from ..zoo.files import read_json, sha256, write_bytes, write_json
from ..zoo.hub_errors import hub_errors
from ..zoo.student import Student, rebuild_student
from .package import CONFIG, WEIGHTS


class HubStudent(nn.Module, PyTorchModelHubMixin, library_name="kdzoo", pipeline_tag="image-classification"):
    """A student, and the `settings` (`config.json`) that rebuild it. Takes normalised images `B 3 H W`, gives logits `B K`."""

    def __init__(self, student: Student, settings: dict[str, Any]) -> None:
        super().__init__()
        self.student, self.settings = student, settings
        self.train(student.training)

    def forward(self, image: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B K"]:
        logits: Tensor = self.student(image)
        return logits

    def _save_pretrained(self, save_directory: Path) -> None:
        from safetensors.torch import save

        weights = {name: tensor.detach().cpu().contiguous() for name, tensor in self.student.state_dict().items()}
        write_bytes(save_directory / WEIGHTS, save(weights))
        write_json(save_directory / CONFIG, {**self.settings, "weights_sha256": sha256(save_directory / WEIGHTS)})

    @classmethod
    def _from_pretrained(cls, *, model_id: str, **where: Any) -> HubStudent:
        """Raises `HubError` where the files cannot be had, `IntegrityError` where they are not of one student."""
        known = ("revision", "cache_dir", "force_download", "local_files_only", "token")
        config, weights = (Path(model_id) / name for name in (CONFIG, WEIGHTS))
        if not Path(model_id).is_dir():
            place = {name: where[name] for name in known}
            with hub_errors(model_id, where["revision"] or "main"):
                config, weights = (Path(hf_hub_download(model_id, name, **place)) for name in (CONFIG, WEIGHTS))
        settings = read_json(config)
        if not weights.is_file() or sha256(weights) != settings.get("weights_sha256"):
            raise IntegrityError(f"{weights} is not the file that {CONFIG} describes (sha256)", hint="fetch or copy it again")
        return cls(rebuild_student(config, weights), settings)
