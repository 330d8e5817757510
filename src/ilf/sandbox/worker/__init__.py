"""What runs in a worker: the judge, its zygote and the programs.

A worker is an interpreter of its own, started by executor.py, with the standard library only and no environment:

    main.py       starts them, reads jobs and writes verdicts
    judge.py      evaluates a program's tests, which are nowhere else; reading.py  how each is evaluated;
    channel.py    messages to the program and back, while there is time; remote.py  its objects as tests see them
    zygote.py     forked from the judge before it has read anything; enters isolation once, forks each program
    program.py    a program's process: runs it, and answers the judge's calls with plain data
    outputs.py    judges programs that read and write, each run of which is a process of script.py
    plain.py      plain data as text
    isolation.py  namespaces, Landlock and limits; seccomp.py  the system-call filters
"""
