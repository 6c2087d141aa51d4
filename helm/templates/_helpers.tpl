{{- define "loraplex.name" -}}
{{- if contains "loraplex" .Release.Name }}{{ .Release.Name | trunc 50 | trimSuffix "-" }}{{ else }}{{ printf "%s-loraplex" .Release.Name | trunc 50 | trimSuffix "-" }}{{ end }}
{{- end }}

{{- define "loraplex.selector" -}}
app.kubernetes.io/name: loraplex
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "loraplex.labels" -}}
{{ include "loraplex.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{- define "loraplex.server" -}}
{{ include "loraplex.selector" . }}
app.kubernetes.io/component: server
{{- end }}

{{- define "loraplex.image" -}}
{{- $build := ternary "gpu" "cpu" (gt (int .Values.gpus) 0) -}}
{{- with .Values.image.digest -}}
{{ $.Values.image.repository }}@{{ . }}
{{- else -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default (printf "%s-%s" .Chart.AppVersion $build) }}
{{- end }}
{{- end }}

{{/* As the restricted pod security standard requires. Files are written only to volumes. */}}
{{- define "loraplex.podSecurity" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "loraplex.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{- define "loraplex.databaseUrl" -}}
- name: LORAPLEX_DATABASE_URL
  valueFrom:
    secretKeyRef:
      name: {{ .Values.database.secretName }}
      key: {{ .Values.database.secretKey }}
{{- end }}

{{/* Seconds that a stream may go on when its pod stops. */}}
{{- define "loraplex.streamsSeconds" -}}
{{- $notice := ternary .Values.settings.notice_seconds 5 (hasKey .Values.settings "notice_seconds") -}}
{{- add .Values.preStopSeconds (ceil $notice) (ceil .Values.settings.drain_seconds) -}}
{{- end }}

{{/* The processes of a server, and NVIDIA's library for messages between GPUs, use files in /dev/shm. */}}
{{- define "loraplex.sharedMemory" -}}
{{- .Values.sharedMemory | default (printf "%dGi" (max 1 (int .Values.gpus))) -}}
{{- end }}

{{/* Converts a quantity of memory to MiB. */}}
{{- define "loraplex.mebibytes" -}}
{{- $number := regexFind "^[0-9.]+" . | float64 -}}
{{- $unit := regexFind "[A-Za-z]*$" . -}}
{{- $bytes := dict "" 1.0 "k" 1e3 "M" 1e6 "G" 1e9 "T" 1e12 "Ki" 1024.0 "Mi" 1048576.0 "Gi" 1073741824.0 "Ti" 1099511627776.0 -}}
{{- divf (mulf $number (get $bytes $unit)) 1048576.0 -}}
{{- end }}
