"""The code that runs in a worker: the judge, its zygote and the programs.

A worker is a separate interpreter that ../processes.py starts with the standard library only and no environment:

    main.py        starts the zygote and the judge, reads jobs and writes verdicts
    judge.py       evaluates a program's tests, which no other process holds
    reading.py     parses tests and decides how each is evaluated; scope.py, pytest_like.py  what tests see and import
    channel.py     exchanges messages with the program until its time is up; remote.py  its objects as tests see them
    zygote.py      is forked before the judge reads any job; enters isolation once and forks each program
    program.py     a program's process: runs the program and answers the judge with plain data; objects.py  describes
                   objects that stay in this process
    outputs.py     judges programs that read and write; each run is a process that executes script.py
    serialization.py  writes and reads plain data as text; containers.py  mutable types, library.py  values of the
                   standard library, arrays.py and frames.py  values of numpy and pandas
    packages.py    imports the allowed packages
    isolation.py   namespaces, Landlock and limits; seccomp.py  the system-call filters
"""
