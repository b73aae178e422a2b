"""`catalogue`: a small network trained on the catalogue's own picture-text pairs and shipped inside the bundle."""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path

from PIL import Image
from pydantic import BaseModel, ConfigDict, Field
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn
from torch.nn import functional

from models.encoders.base import EncoderUnavailableError, NetworkEncoder
from models.encoders.image import import_torchvision, prepare_image, read_weights
from models.encoders.runtime import compile_network

CATALOGUE = "catalogue"
_CONFIG = "lacuna_catalogue_encoder"  # the one metadata key of a weights file
_FOREIGN = "the file of the encoder 'catalogue' does not hold its weights"
_GRAPH = "v1"  # to be raised when the network's code below changes its result


class CatalogueNetworkConfig(BaseModel):
    """Shape of the network: the side of its input in pixels, channels after the stem, length of a vector."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    input_size: int = Field(64, ge=16)
    width: int = Field(16, ge=4)
    embedding_size: int = Field(128, ge=2)


class CatalogueNetwork(nn.Module):
    """A narrow residual network: pictures `[n, 3, s, s]` (see `prepare_image`) -> unit vectors `[n, embedding_size]`.

    torchvision's residual blocks (He et al., CVPR 2016), one per resolution: few enough to train in under a minute.
    """

    def __init__(self, config: CatalogueNetworkConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        stem = (nn.Conv2d(3, width, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        stages = (_halving_block(width * 2**k) for k in range(3))
        self.backbone = nn.Sequential(*stem, *stages, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.projection = nn.Linear(width * 8, config.embedding_size)

    def forward(self, x: Tensor) -> Tensor:
        features = self.backbone(x)  # [n, 8 width]
        return functional.normalize(self.projection(features), dim=1)

    def to_bytes(self) -> bytes:
        """The weights as safetensors, with the config in the metadata."""
        state = {name: value.detach().contiguous() for name, value in self.state_dict().items()}
        return save(state, metadata={_CONFIG: self.config.model_dump_json()})

    @classmethod
    def from_bytes(cls, blob: bytes) -> CatalogueNetwork:
        """The inverse of `to_bytes`, in evaluation mode.

        Raises:
            EncoderUnavailableError: these are no weights of a catalogue encoder.
        """
        network = cls(_config_of(blob))
        try:
            network.load_state_dict(load(blob))
        except (SafetensorError, RuntimeError) as error:
            raise EncoderUnavailableError(_FOREIGN) from error
        return network.eval()


def _config_of(blob: bytes) -> CatalogueNetworkConfig:
    """The config in the header of safetensors bytes: 8 bytes of length, then JSON."""
    try:
        header = json.loads(blob[8 : 8 + int.from_bytes(blob[:8], "little")])
        return CatalogueNetworkConfig.model_validate_json(header["__metadata__"][_CONFIG])
    except (LookupError, TypeError, ValueError) as error:
        raise EncoderUnavailableError(_FOREIGN) from error


def _halving_block(channels: int) -> nn.Module:
    """Half the resolution, twice the channels."""
    import_torchvision()
    from torchvision.models.resnet import BasicBlock  # only works once import_torchvision has run

    skip = nn.Sequential(nn.Conv2d(channels, 2 * channels, 1, stride=2, bias=False), nn.BatchNorm2d(2 * channels))
    block: nn.Module = BasicBlock(channels, 2 * channels, stride=2, downsample=skip)
    return block


def catalogue_encoder(
    source: Path | CatalogueNetwork, *, cache_dir: Path | None = None, threads: int = 1
) -> NetworkEncoder[Image.Image]:
    """The image encoder of a catalogue: unit vectors.

    Args:
        source: a file of `CatalogueNetwork.to_bytes`, or a network just trained.
        cache_dir: where the exported graph is kept between starts.
        threads: how many pictures of a batch are encoded at a time.

    Raises:
        EncoderUnavailableError: the file is missing or holds something else.
    """
    blob = source.to_bytes() if isinstance(source, CatalogueNetwork) else read_weights(source, CATALOGUE)
    size = _config_of(blob).input_size
    digest = sha256(blob).hexdigest()
    blank = Image.new("RGB", (size, size), "white")
    network = compile_network(
        lambda: CatalogueNetwork.from_bytes(blob),
        [prepare_image(Image.radial_gradient("L").convert("RGB"), size)],
        key=f"{CATALOGUE}-{_GRAPH}-{digest[:16]}",
        cache_dir=cache_dir,
    )
    return NetworkEncoder(
        CATALOGUE,
        digest,
        prepare=lambda image: prepare_image(image, size),
        network=network,
        blank=blank,
        threads=threads,
    )
