# What serving costs, one run after the other; all cores, so that nothing runs beside it.
rule inference:
    input:
        artifacts=lambda wildcards: [
            f"{folder}/artifact.npz" for folder in GRID.folders(wildcards.dataset)
        ],
        serving="results/data/{dataset}/serving.npz",
        code=[module_file(name) for name in ("c2f.inference", "c2f.serve", *READING)],
    output:
        "<output>/tables/inference-{dataset}.csv",
    log:
        "<output>/logs/inference/{dataset}.log",
    conda:
        "../../environment.yml"
    threads: workflow.resource_settings.cores or 1
    params:
        runs=lambda wildcards: GRID.folders(wildcards.dataset),
        data=lambda wildcards, input: os.path.dirname(input.serving),
        users=GRID.serving["num_users"],
        limit=GRID.serving["memory_limit"],
    shell:
        "python -m c2f inference --runs {params.runs} --data {params.data} --num_users {params.users}"
        " --memory_limit {params.limit} --output {output} 2>&1 | tee {log}"


# One table per dataset: the command that names its runs must stay below 128 KiB.
rule collect:
    input:
        records=lambda wildcards: [
            f"{folder}/run.json" for folder in GRID.folders(wildcards.dataset)
        ],
        metrics=lambda wildcards: [
            f"{folder}/metrics.json" for folder in GRID.folders(wildcards.dataset)
        ],
        stats="results/data/{dataset}/stats.json",
        inference="<output>/tables/inference-{dataset}.csv",
        code=module_file("c2f.report"),
    output:
        "<output>/tables/runs-{dataset}.parquet",
    log:
        "<output>/logs/collect/{dataset}.log",
    localrule: True
    conda:
        "../../environment.yml"
    params:
        runs=lambda wildcards: GRID.folders(wildcards.dataset),
        methods=GRID.methods,
        data=lambda wildcards, input: os.path.dirname(input.stats),
        spec=lambda wildcards: GRID.data_spec(wildcards.dataset, urls=False),
    shell:
        "python -m c2f collect --runs {params.runs} --methods {params.methods} --data {params.data}"
        " --spec {params.spec:q} --inference {input.inference} --output {output} 2>&1 | tee {log}"


rule table:
    input:
        runs=expand("<output>/tables/runs-{dataset}.parquet", dataset=GRID.datasets),
        code=module_file("c2f.report"),
    output:
        csv=report(
            "<output>/tables/main.csv",
            caption="../report/table.rst",
            category="Tables",
        ),
        md="<output>/tables/main.md",
        tex="<output>/tables/main.tex",
    log:
        "<output>/logs/table/main.log",
    localrule: True
    conda:
        "../../environment.yml"
    params:
        stem=lambda wildcards, output: os.path.splitext(output.csv)[0],
        made_by=made_by(),
        caption=table_caption(),
    shell:
        "python -m c2f table --runs {input.runs} --made_by {params.made_by:q} --output {params.stem} 2>&1 | tee {log}"


rule memory:
    input:
        runs=expand("<output>/tables/runs-{dataset}.parquet", dataset=GRID.datasets),
        code=module_file("c2f.report"),
    output:
        csv=report(
            "<output>/tables/memory.csv",
            caption="../report/memory.rst",
            category="Tables",
        ),
        md="<output>/tables/memory.md",
    log:
        "<output>/logs/table/memory.log",
    localrule: True
    conda:
        "../../environment.yml"
    params:
        stem=lambda wildcards, output: os.path.splitext(output.csv)[0],
        made_by=made_by(),
    shell:
        "python -m c2f memory --runs {input.runs} --made_by {params.made_by:q} --output {params.stem} 2>&1 | tee {log}"


rule compare:
    input:
        runs=expand("<output>/tables/runs-{dataset}.parquet", dataset=GRID.datasets),
        users=[
            f"{folder}/per_user.parquet"
            for dataset in GRID.datasets
            for folder in GRID.folders(dataset)
        ],
        code=[module_file("c2f.compare"), module_file("c2f.stats")],
    output:
        csv=report(
            "<output>/tables/compare.csv",
            caption="../report/compare.rst",
            category="Tables",
        ),
        md="<output>/tables/compare.md",
        tex="<output>/tables/compare.tex",
        variance="<output>/tables/compare-variance.csv",
    log:
        "<output>/logs/table/compare.log",
    localrule: True
    conda:
        "../../environment.yml"
    params:
        stem=lambda wildcards, output: os.path.splitext(output.csv)[0],
        made_by=made_by(),
        plain=GRID.references["plain"],
    shell:
        "python -m c2f compare --runs {input.runs} --plain {params.plain} --made_by {params.made_by:q}"
        " --output {params.stem} 2>&1 | tee {log}"


# Asked for where one dataset is run under several recipes.
rule protocol_effect:
    input:
        runs=expand("<output>/tables/runs-{dataset}.parquet", dataset=GRID.datasets),
        users=[
            f"{folder}/per_user.parquet"
            for dataset in GRID.datasets
            for folder in GRID.folders(dataset)
        ],
        code=[module_file(f"c2f.{name}") for name in ("protocols", "compare", "stats")],
    output:
        csv=report(
            "<output>/tables/protocol_effect.csv",
            caption="../report/protocol_effect.rst",
            category="Tables",
        ),
        md="<output>/tables/protocol_effect.md",
        orders="<output>/tables/protocol_effect-orders.csv",
    log:
        "<output>/logs/table/protocol_effect.log",
    localrule: True
    conda:
        "../../environment.yml"
    params:
        stem=lambda wildcards, output: os.path.splitext(output.csv)[0],
        made_by=made_by(),
        full=GRID.references["full"],
    shell:
        "python -m c2f protocol_effect --runs {input.runs} --full {params.full} --made_by {params.made_by:q}"
        " --output {params.stem} 2>&1 | tee {log}"


rule figure:
    input:
        runs=expand("<output>/tables/runs-{dataset}.parquet", dataset=GRID.datasets),
        literature=lambda wildcards: GRID.figure_files(wildcards.name),
        code=[
            module_file(f"c2f.{name}")
            for name in (
                "figures",
                "memory_figures",
                "evidence_figures",
                "compare",
                "stats",
            )
        ],
    output:
        png=report(
            "<output>/figures/{name}.png",
            caption="../report/figure.rst",
            category="Figures",
            subcategory="{name}",
        ),
        pdf="<output>/figures/{name}.pdf",
        caption="<output>/figures/{name}.txt",
        csv=report(
            "<output>/figures/{name}.csv",
            caption="../report/figure.rst",
            category="Figures",
            subcategory="{name}",
        ),
    log:
        "<output>/logs/figure/{name}.log",
    localrule: True
    conda:
        "../../environment.yml"
    params:
        spec=lambda wildcards: GRID.figure_spec(wildcards.name),
        caption=lambda wildcards: GRID.caption(wildcards.name),
        stem=lambda wildcards, output: os.path.splitext(output.png)[0],
    shell:
        "python -m c2f figure --name {wildcards.name} --spec {params.spec:q} --runs {input.runs} --output {params.stem} 2>&1"
        " | tee {log}"


rule report:
    input:
        table="<output>/tables/main.csv",
        compare="<output>/tables/compare.csv",
        protocols=["<output>/tables/protocol_effect.csv"] * GRID.several_protocols,
        figures=expand("<output>/figures/{name}.png", name=GRID.figures),
        captions=expand("<output>/figures/{name}.txt", name=GRID.figures),
        runs=expand("<output>/tables/runs-{dataset}.parquet", dataset=GRID.datasets),
        code=[
            module_file(f"c2f.{name}")
            for name in ("report", "page", "findings", "protocols")
        ],
        template=multiext(
            os.path.splitext(module_file("c2f.page"))[0], ".html", ".css", ".js"
        ),
    output:
        report(
            "<output>/report.html", caption="../report/report.rst", category="Report"
        ),
    log:
        "<output>/logs/report/report.log",
    localrule: True
    conda:
        "../../environment.yml"
    params:
        made_by=made_by(),
        spec=json.dumps({"families": GRID.families}),
        full=GRID.references["full"],
        plain=GRID.references["plain"],
    shell:
        "python -m c2f report --tables {input.table} --compare {input.compare} --figures {input.figures}"
        " --protocols {input.protocols} --runs {input.runs} --full {params.full} --plain {params.plain} --spec {params.spec:q}"
        " --made_by {params.made_by:q} --output {output} 2>&1 | tee {log}"
