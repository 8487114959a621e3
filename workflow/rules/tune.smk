# Settings searched on the validation pairs. The test pairs are not among the inputs; an interrupted study is taken up again.
rule tune:
    input:
        train="results/data/{dataset}/train.parquet",
        valid="results/data/{dataset}/valid.parquet",
        stats="results/data/{dataset}/stats.json",
        method="<output>/methods/{method}.json",
        start=lambda wildcards: expand(
            "{folder}/{file}",
            folder=start_of(wildcards, GRID.tuning["seed"]),
            file=["run.json", "artifact.npz"],
        ),
    output:
        "<output>/tuned/{dataset}/{method}/{budget}.json",
    log:
        "<output>/logs/tune/{dataset}/{method}/{budget}.log",
    conda:
        "../../environment.yml"
    threads: lambda wildcards: GRID.threads(wildcards.dataset)
    resources:
        gpu=lambda wildcards: GRID.gpus(wildcards.dataset, wildcards.method),
    params:
        trials=GRID.tuning["trials"],
        seed=GRID.tuning["seed"],
        space=json.dumps(GRID.tuning["space"], sort_keys=True),
        start=lambda wildcards: expand(
            "--start {folder}", folder=start_of(wildcards, GRID.tuning["seed"])
        ),
        training=lambda wildcards: training_on(wildcards.dataset),
        folder=lambda wildcards: f"{GRID.output}/tuning/{wildcards.dataset}/{wildcards.method}/{wildcards.budget}",
    shell:
        "python -m c2f tune --train {input.train} --valid {input.valid} --stats {input.stats} --method {input.method}"
        " --budget {wildcards.budget} --trials {params.trials} --seed {params.seed} --space {params.space:q}"
        " {params.start} {params.training:q} --folder {params.folder} --output {output} > {log} 2>&1"


# As entries of a configuration, to be given after the one that they were found with.
rule freeze:
    input:
        lambda wildcards: [
            f"{GRID.output}/tuned/{run.dataset}/{run.method}/{run.budget}.json"
            for run in GRID.studies(wildcards.dataset)
        ],
    output:
        multiext("<output>/tuned/{dataset}", ".yaml", ".pdf", ".png", ".csv", ".txt"),
    log:
        "<output>/logs/freeze/{dataset}.log",
    localrule: True
    conda:
        "../../environment.yml"
    params:
        spec=lambda wildcards: GRID.tuned_spec(wildcards.dataset),
        made_by=made_by().replace(" all ", " tuned ", 1),
        stem=lambda wildcards, output: os.path.splitext(output[0])[0],
    shell:
        "python -m c2f freeze --studies {input} --spec {params.spec:q} --made_by {params.made_by:q} --output {params.stem}"
        " 2>&1 | tee {log}"


rule tuned:
    input:
        expand("<output>/tuned/{dataset}.yaml", dataset=GRID.datasets),
    localrule: True
