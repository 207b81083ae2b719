"""Make a version champion, of the model and of its video classifier: to roll back, say.

mlflow run . -e promote --env-manager local -P version=3
mlflow run . -e promote --env-manager local -P version=previous
"""

from k400tiny_lib.config import Config
from k400tiny_lib.console import say_result
from k400tiny_lib.workflow.command import step_command


@step_command("promote")
def promote(config: Config) -> None:
    """Load the version and its sibling, make both champions, say what was before."""
    from k400tiny_lib.registry.rollback import log_champions, promote_by_hand

    champions = promote_by_hand(config)
    log_champions(*champions)
    for champion in champions:
        say_result(champion.text)


if __name__ == "__main__":
    promote()
