{{/* Refuses values that don't fit together, with the reason and the remedy. */}}
{{- define "loraplex.checks" -}}
{{- $v := .Values -}}
{{- $scaled := ne $v.autoscaling.kind "none" -}}
{{- $most := int (ternary $v.autoscaling.maxReplicas $v.replicas $scaled) -}}
{{- if and (gt $most 1) (not $v.database.secretName) -}}
{{- fail (printf "%d servers need one database, and SQLite is for one server. Set database.secretName to a Secret with a PostgreSQL URL." $most) -}}
{{- end -}}
{{- if and (gt $most 1) (not $v.settings.origin) -}}
{{- fail (printf "%d servers need one place for adapters' files: set settings.origin to s3://bucket/prefix." $most) -}}
{{- end -}}
{{- if and (gt $most 1) (not $v.adminKey.secretName) -}}
{{- fail (printf "%d servers need one admin key, which must not be lost with a server's volume: set adminKey.secretName to a Secret with a key." $most) -}}
{{- end -}}
{{- if and $v.persistence.existingClaim (gt $most 1) -}}
{{- fail "persistence.existingClaim is the data folder of one server: leave it empty for more servers." -}}
{{- end -}}
{{- if and $scaled (gt (int $v.autoscaling.minReplicas) $most) -}}
{{- fail "autoscaling.minReplicas is above autoscaling.maxReplicas." -}}
{{- end -}}
{{- if and (eq $v.autoscaling.kind "hpa") (not $v.autoscaling.metrics) -}}
{{- fail "autoscaling.kind hpa needs metrics: set autoscaling.metrics (or kind keda with autoscaling.prometheusUrl)." -}}
{{- end -}}
{{- if and (eq $v.autoscaling.kind "keda") (not $v.autoscaling.prometheusUrl) -}}
{{- fail "autoscaling.kind keda needs autoscaling.prometheusUrl." -}}
{{- end -}}
{{- if and $v.inferencePool.enabled (not $v.inferencePool.endpointPicker) -}}
{{- fail "inferencePool needs inferencePool.endpointPicker, the Service of the endpoint picker." -}}
{{- end -}}
{{- if and $v.inferencePool.enabled $v.envoy.enabled -}}
{{- fail "envoy and inferencePool both route by adapter: enable one of them." -}}
{{- end -}}
{{- if and (hasPrefix "/" (default "" $v.settings.base)) (not $v.modelsClaim) -}}
{{- fail (printf "settings.base is the path %s, which is on no volume: set modelsClaim." $v.settings.base) -}}
{{- end -}}
{{- if and $v.monitoring.serviceMonitor $v.networkPolicy.enabled (not $v.networkPolicy.scrapeFrom) -}}
{{- fail "monitoring.serviceMonitor: the NetworkPolicy allows no scrapes. Set networkPolicy.scrapeFrom to Prometheus' peers, such as a namespaceSelector." -}}
{{- end -}}
{{- if and $v.ingress.enabled (not $v.ingress.host) -}}
{{- fail "ingress.enabled needs ingress.host." -}}
{{- end -}}
{{- if and $v.httpRoute.enabled (not $v.httpRoute.gateway) -}}
{{- fail "httpRoute.enabled needs httpRoute.gateway, the name of a Gateway." -}}
{{- end -}}
{{- if and $v.httpRoute.enabled $v.inferencePool.enabled -}}
{{- fail "inferencePool makes an HTTPRoute of its own: disable httpRoute." -}}
{{- end -}}
{{- include "loraplex.checkMemory" . -}}
{{- end }}

{{- define "loraplex.checkMemory" -}}
{{- $v := .Values -}}
{{- $slots := int $v.settings.max_loras -}}
{{- $host := int (default $slots $v.settings.max_cpu_loras) -}}
{{- if lt $host $slots -}}
{{- fail (printf "settings.max_cpu_loras (%d) must be at least settings.max_loras (%d)." $host $slots) -}}
{{- end -}}
{{- $adapter := mulf $v.sizing.adapterMiBPerRank (float64 $v.settings.max_lora_rank) -}}
{{- $base := mulf $v.sizing.baseGiB 1024.0 -}}
{{- $memory := include "loraplex.mebibytes" (toString $v.resources.limits.memory) | float64 -}}
{{- $shared := include "loraplex.mebibytes" (include "loraplex.sharedMemory" .) | float64 -}}
{{- $need := addf (mulf $host $adapter) 2560.0 -}}
{{- if gt (int $v.gpus) 0 -}}
{{- $need = addf $need $shared -}}
{{- $gpus := mulf $v.gpus $v.sizing.gpuGiB 1024.0 0.9 -}}
{{- $onGpu := addf $base (mulf $slots $adapter) (mulf $v.gpus 2048.0) -}}
{{- if gt $onGpu $gpus -}}
{{- fail (printf "settings.max_loras: %d slots of rank %v, the base, and 2 GiB on each GPU for kernels and a step take %.0f MiB, but %v GPUs have %.0f: lower max_loras or max_lora_rank, or raise gpus (sizing says how large they are)." $slots $v.settings.max_lora_rank $onGpu $v.gpus $gpus) -}}
{{- end -}}
{{- else -}}
{{- $need = addf $need $base (mulf 1024.0 (default 1 $v.settings.kv_cache_gib)) -}}
{{- end -}}
{{- if gt $need $memory -}}
{{- fail (printf "resources.limits.memory: %d adapters of rank %v in host memory, and the server, take %.0f MiB, but the limit is %.0f: lower max_loras or max_cpu_loras, or raise the limit (sizing says how large they are)." $host $v.settings.max_lora_rank $need $memory) -}}
{{- end -}}
{{- end }}
