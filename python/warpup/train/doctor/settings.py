"""The check that a run makes itself before its first step."""

from collections.abc import Iterator

from ..config import TrainConfig, check_config_of_run
from ..errors import TrainError
from ..recipe import Recipe
from .findings import Patient, Result, check, fault, fine


@check
def settings(patient: Patient) -> Iterator[Result]:
    """the config, the data and the model as `warpup train` looks at them before the first step"""
    config = patient.config
    if config == TrainConfig(model=config.model):
        return
    try:
        check_config_of_run(config, config)
        Recipe(config.all_stages(), dtype=config.dtype, keep_last=config.keep_last).check(
            patient.model, patient.tokenizer
        )
    except TrainError as error:
        found, _, change = str(error).rpartition("; ")
        yield fault(found or change, change if found else "as it says")
    else:
        yield fine("nothing is refused")
