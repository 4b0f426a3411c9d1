"""A plugin for pytest: an example that fails is enough, however large it is."""

import pytest


def pytest_configure(config: pytest.Config) -> None:
    from hypothesis import Phase, settings

    settings.register_profile("no-shrinking", phases=[Phase.explicit, Phase.generate], database=None)
    settings.load_profile("no-shrinking")
