"""Every statement of the README's section "When something goes wrong" is checked, and by which tests."""

import re

import pytest
from helpers import ROOT

CHECKED_BY = {
    "The same command again": ["test_sigterm_and_ctrl_c_save_and_the_same_command_finishes"],
    "Ctrl-C or SIGTERM": [
        "test_sigterm_and_ctrl_c_save_and_the_same_command_finishes",
        "test_a_stop_in_the_first_seconds",
        "test_a_stop_while_a_picture_takes_long_to_decode",
    ],
    "Killed, or the power gone": [
        "test_a_run_that_is_killed_at_random_instants_loses_nothing",
        "test_what_is_lost_is_no_more_than_was_trained_since_the_last_save",
        "test_a_file_is_on_the_disk_before_it_gets_its_name",
    ],
    "A full disk, a folder that is read-only or gone": [
        "test_a_disk_that_fills_up_under_the_real_program",
        "test_an_output_folder_that_becomes_read_only_in_mid_run",
        "test_an_output_folder_that_is_removed_in_mid_run",
    ],
    "A process of `--jobs` killed": ["test_workers_that_are_killed_are_replaced"],
    "A damaged file": [
        "test_a_damaged_state_falls_back_to_the_one_before",
        "test_a_damaged_model_is_named_and_made_again",
        "test_a_damaged_cache_is_said_in_one_line",
    ],
    "Other images, seed or settings": [
        "test_changed_settings_start_anew_and_say_so",
        "test_changed_images_start_every_trajectory_anew",
        "test_results_of_other_settings_are_not_mixed",
    ],
    "A second run into the same output folder": ["test_a_second_run_on_the_same_output_says_so_and_stops"],
    "A loss that is no longer finite": ["test_a_sweep_survives_a_combination_that_diverges"],
    "An image that cannot be read": ["test_a_folder_of_hostile_files", "test_nothing_but_the_output_folder_is_written"],
    "A file among the checkpoints that is none of ours": [
        "test_code_in_a_checkpoint_is_never_run",
        "test_a_report_names_each_junk_file_and_reports_the_rest",
    ],
}
FILTER = ("survive", "resume", "hostile")  # `pytest -k "survive or resume or hostile"` runs them all


def test_every_statement_is_in_the_table() -> None:
    section = (ROOT / "README.md").read_text().split("## When something goes wrong\n")[1].split("\n## ")[0]
    statements = [re.sub(r"[:,]$", "", found) for found in re.findall(r"^- \*\*(.+?)\*\*", section, re.M)]
    assert [*CHECKED_BY][1:] == statements
    assert "The same command again" in section


@pytest.mark.parametrize("test", sorted({test for tests in CHECKED_BY.values() for test in tests}))
def test_the_test_of_a_statement_is_there(test: str) -> None:
    (path,) = (path for path in (ROOT / "tests").glob("test_*.py") if f"\ndef {test}(" in path.read_text())
    assert any(word in f"{path.name} {test}" for word in FILTER)
