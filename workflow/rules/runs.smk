# The method's source is an input here, and its checksum stands in the output: an edit retrains this method and what starts from it.
rule resolve:
    input:
        source=lambda wildcards: GRID.source(wildcards.method),
    output:
        "<output>/methods/{method}.json",
    log:
        "<output>/logs/resolve/{method}.log",
    localrule: True
    conda:
        "../../environment.yml"
    params:
        entry=lambda wildcards: GRID.entries[wildcards.method].to_json(),
        training=lambda wildcards: GRID.training_of(wildcards.method),
    shell:
        "python -m c2f resolve --name {wildcards.method} --entry {params.entry:q} --training {params.training:q}"
        " --output {output} 2>&1 | tee {log}"


# The test pairs are not among the inputs. A run that cannot be done ends well too, and says why in run.json.
rule train:
    input:
        train="results/data/{dataset}/train.parquet",
        valid="results/data/{dataset}/valid.parquet",
        stats="results/data/{dataset}/stats.json",
        method="<output>/methods/{method}.json",
        start=lambda wildcards: expand(
            "{folder}/{file}",
            folder=start_of(wildcards),
            file=["run.json", "artifact.npz"],
        ),
    output:
        artifact="<output>/runs/{dataset}/{method}/{budget}/{seed}/artifact.npz",
        record="<output>/runs/{dataset}/{method}/{budget}/{seed}/run.json",
        curve="<output>/runs/{dataset}/{method}/{budget}/{seed}/curve.csv",
    log:
        "<output>/logs/train/{dataset}/{method}/{budget}/{seed}.log",
    conda:
        "../../environment.yml"
    threads: lambda wildcards: GRID.threads(wildcards.dataset)
    resources:
        gpu=lambda wildcards: GRID.gpus(wildcards.dataset, wildcards.method),
    params:
        start=lambda wildcards: expand("--start {folder}", folder=start_of(wildcards)),
        training=lambda wildcards: training_on(wildcards.dataset),
        folder=lambda wildcards, output: os.path.dirname(output.record),
    shell:
        "python -m c2f train --train {input.train} --valid {input.valid} --stats {input.stats} --method {input.method}"
        " --budget {wildcards.budget} --seed {wildcards.seed} {params.start} {params.training:q}"
        " --output {params.folder} > {log} 2>&1"


rule evaluate:
    input:
        artifact="<output>/runs/{dataset}/{method}/{budget}/{seed}/artifact.npz",
        parts=multiext(
            "results/data/{dataset}/",
            "train.parquet",
            "valid.parquet",
            "test.parquet",
            "stats.json",
        ),
        code=[
            module_file(name) for name in ("c2f.evaluate", "c2f.diagnostics", *READING)
        ],
    output:
        users="<output>/runs/{dataset}/{method}/{budget}/{seed}/per_user.parquet",
        metrics="<output>/runs/{dataset}/{method}/{budget}/{seed}/metrics.json",
        diagnostics="<output>/runs/{dataset}/{method}/{budget}/{seed}/diagnostics.json",
    log:
        "<output>/logs/evaluate/{dataset}/{method}/{budget}/{seed}.log",
    conda:
        "../../environment.yml"
    threads: lambda wildcards: GRID.threads(wildcards.dataset)
    resources:
        gpu=lambda wildcards: GRID.gpus(wildcards.dataset, wildcards.method),
    params:
        run=lambda wildcards, input: os.path.dirname(input.artifact),
        data=lambda wildcards, input: os.path.dirname(input.parts[0]),
        ks=",".join(map(str, GRID.ks)),
        folder=lambda wildcards, output: os.path.dirname(output.metrics),
    shell:
        "python -m c2f evaluate --run {params.run} --data {params.data} --ks {params.ks} --output {params.folder}"
        " > {log} 2>&1"
