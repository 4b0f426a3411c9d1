"""SSM parameters of AWS's own, below /aws/service, by which a template asks for the current image of a machine."""

from typing import Any, Final

from ministack.services import ssm

_PREFIX: Final = "/aws/service/ami-"
_NO_IMAGE: Final = "ami-0123456789abcdef0"


def install() -> None:
    """Answer for them with an id that leads to no image, since no machine is started."""
    resolve = ssm.resolve_parameter_value

    def resolve_parameter_value(name: str, *arguments: Any, **named: Any) -> Any:
        return _NO_IMAGE if name.startswith(_PREFIX) else resolve(name, *arguments, **named)

    ssm.resolve_parameter_value = resolve_parameter_value
