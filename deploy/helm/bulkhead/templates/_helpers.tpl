{{- define "bulkhead.image" -}}
image: {{ printf "%s:%s" .Values.image.repository (default .Chart.AppVersion .Values.image.tag) | quote }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
{{- end }}

{{- define "bulkhead.pod" -}}
{{- with .Values.imagePullSecrets }}
imagePullSecrets: {{ toJson . }}
{{- end }}
tolerations: {{ toJson .Values.tolerations }}
{{- end }}

{{- define "bulkhead.nodes" -}}
nodeSelector: {{ merge (dict "kubernetes.io/os" "linux") .Values.nodeSelector | toJson }}
{{- end }}

{{- define "bulkhead.apiServer" -}}
{{- if .Values.apiServer.host -}}
- {name: KUBERNETES_SERVICE_HOST, value: {{ .Values.apiServer.host | quote }}}
- {name: KUBERNETES_SERVICE_PORT, value: {{ .Values.apiServer.port | quote }}}
{{- end }}
{{- end }}
