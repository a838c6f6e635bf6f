"""The forget set's fingerprint, which cached scores and records are known by."""

from dataclasses import replace

from tinymem.localize.subject import task_fingerprint


def test_the_fingerprint_sees_what_changes_scores_and_nothing_else(tiny_task):
    task = tiny_task()
    forget = task.forget
    others = [
        replace(task, seed=1),
        replace(task, continuation=5),
        replace(task, ignored_token=3),
        replace(task, retain=task.retain[1:]),
        replace(task, forget=replace(forget, planted=forget.planted.flip(0))),
        replace(task, forget=replace(forget, prompt_end=forget.prompt_end + 1)),
    ]
    assert len({task_fingerprint(each) for each in (task, *others)}) == 7
    assert task_fingerprint(replace(task, microbatch=3, gradient_checkpointing=True)) == task_fingerprint(task)
