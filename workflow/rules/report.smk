# One table per dataset: the command that names its runs must stay below 128 KiB.
rule collect:
    input:
        records=lambda wildcards: [
            f"{folder}/run.json" for folder in GRID.folders(wildcards.dataset)
        ],
        metrics=lambda wildcards: [
            f"{folder}/metrics.json" for folder in GRID.folders(wildcards.dataset)
        ],
    output:
        "results/tables/runs-{dataset}.parquet",
    log:
        "results/logs/collect/{dataset}.log",
    localrule: True
    conda:
        "../../environment.yml"
    params:
        runs=lambda wildcards: GRID.folders(wildcards.dataset),
    shell:
        "python -m c2f collect --runs {params.runs} --output {output} 2>&1 | tee {log}"


rule table:
    input:
        runs=expand("results/tables/runs-{dataset}.parquet", dataset=GRID.datasets),
        code=module_file("c2f.report"),
    output:
        csv=report(
            "results/tables/main.csv", caption="../report/table.rst", category="Tables"
        ),
        md="results/tables/main.md",
        tex="results/tables/main.tex",
    log:
        "results/logs/table/main.log",
    localrule: True
    conda:
        "../../environment.yml"
    params:
        stem=lambda wildcards, output: os.path.splitext(output.csv)[0],
    shell:
        "python -m c2f table --runs {input.runs} --output {params.stem} 2>&1 | tee {log}"


rule figure:
    input:
        runs=expand("results/tables/runs-{dataset}.parquet", dataset=GRID.datasets),
        code=module_file("c2f.figures"),
    output:
        png=report(
            "results/figures/{name}.png",
            caption="../report/figure.rst",
            category="Figures",
            subcategory="{name}",
        ),
        pdf="results/figures/{name}.pdf",
        csv=report(
            "results/figures/{name}.csv",
            caption="../report/figure.rst",
            category="Figures",
            subcategory="{name}",
        ),
    log:
        "results/logs/figure/{name}.log",
    localrule: True
    conda:
        "../../environment.yml"
    params:
        spec=lambda wildcards: GRID.figure_spec(wildcards.name),
        stem=lambda wildcards, output: os.path.splitext(output.png)[0],
    shell:
        "python -m c2f figure --name {wildcards.name} --spec {params.spec:q} --runs {input.runs} --output {params.stem} 2>&1"
        " | tee {log}"


rule report:
    input:
        table="results/tables/main.csv",
        figures=expand("results/figures/{name}.png", name=GRID.figures),
        runs=expand("results/tables/runs-{dataset}.parquet", dataset=GRID.datasets),
        code=module_file("c2f.report"),
    output:
        report("results/report.html", caption="../report/report.rst", category="Report"),
    log:
        "results/logs/report/report.log",
    localrule: True
    conda:
        "../../environment.yml"
    shell:
        "python -m c2f report --tables {input.table} --figures {input.figures} --runs {input.runs} --output {output} 2>&1"
        " | tee {log}"
