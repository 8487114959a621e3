# What is `like:` another dataset has its files: they are downloaded once, under the name of the entry that names them.
rule download:
    output:
        touch("results/data/{dataset}/raw/.downloaded"),
    log:
        "results/logs/download/{dataset}.log",
    localrule: True
    conda:
        "../../environment.yml"
    params:
        spec=lambda wildcards: GRID.data_spec(wildcards.dataset, urls=True),
        folder=lambda wildcards, output: os.path.dirname(output[0]),
    shell:
        "python -m c2f download --name {wildcards.dataset} --spec {params.spec:q} --output {params.folder} 2>&1"
        " | tee {log}"


rule prepare:
    input:
        lambda wildcards: f"results/data/{GRID.roots[wildcards.dataset]}/raw/.downloaded",
    output:
        multiext(
            "results/data/{dataset}/",
            "train.parquet",
            "valid.parquet",
            "test.parquet",
            "ids.csv",
            "serving.npz",
            "stats.json",
        ),
    log:
        "results/logs/prepare/{dataset}.log",
    conda:
        "../../environment.yml"
    params:
        spec=lambda wildcards: GRID.data_spec(wildcards.dataset, urls=False),
        raw=lambda wildcards, input: os.path.dirname(input[0]),
        folder=lambda wildcards, output: os.path.dirname(output[0]),
    shell:
        "python -m c2f prepare --name {wildcards.dataset} --spec {params.spec:q} --raw {params.raw}"
        " --output {params.folder} 2>&1 | tee {log}"
