"""What makes data sets for the tasks, run by hand before a plan: pictures of characters, aligned and synthetic speech.

    python -m raydistill.tasks.make.glyphs             kanji in the fonts of this machine, for the task `many_class`
    python -m raydistill.tasks.make.speech_align       recordings and transcripts to frames, for `speech_frames`
    python -m raydistill.tasks.make.speech_synthesise  recordings to try that with, spoken by espeak-ng

No task imports from here: what a task reads is files, whoever wrote them.
"""
